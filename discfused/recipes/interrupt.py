"""What a run that was stopped says."""


class Interrupted(Exception):
    def __init__(self, step: int, steps: int):
        super().__init__(f"stopped after step {step} of {steps}; the same command goes on from "
                         "there (train: with --resume)")  # fmt: skip
