"""How fast discfused is, against what one would use instead, and where it loses.

pytest benchmarks/ --benchmark-only                  quick: small cases, under 100 s on one core
pytest benchmarks/ --benchmark-only --full --benchmark-json=run.json
pytest benchmarks/ --benchmark-only --full -k 1024x2048x1000
python -m benchmarks.report run.json                 tables, into benchmarks/results/
python -m benchmarks.compare OLD_FOLDER NEW_FOLDER   two builds of the library, in turns
python -m benchmarks.gpu_model                       what the GPU kernels must cost, computed

cases        what is measured, as data
competitors  against whom
measure      one case: verify every competitor, time all of them in turns, count their memory
test_speed   the rows, as pytest-benchmark shows them
launches     what the Triton backend launches, recorded and compiled
sass         compiled code, read: loads in flight, registers, blocks
"""
