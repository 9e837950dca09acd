"""How fast discfused is, against what one would use instead, and where it loses.

pytest benchmarks/ --benchmark-only                  quick: the core cases, under 4 minutes
pytest benchmarks/ --benchmark-only -k core          their speed table alone
pytest benchmarks/ --benchmark-only --full --benchmark-json=run.json
python -m benchmarks.report run.json                 tables and plots, into benchmarks/results/
python -m benchmarks.compare OLD.json NEW.json       did a fused row get slower?

cases        what is measured, as data
competitors  against whom           verify   nobody is timed who computes something else
timing       all competitors of a group in turns
groups       one group: verify, time, count memory; what every row says
test_*.py    the rows, as pytest-benchmark shows them
"""
