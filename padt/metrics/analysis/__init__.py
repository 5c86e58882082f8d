"""Why a model fails: kinds of mistakes and what they cost, and where they happen."""
