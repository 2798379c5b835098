"""What a sequence of tasks did to each of them, in losses.

R[i][j] is the loss on task j's held-out rows after training task i, i = 0 .. T, j = 1 .. T; i = 0 is before any.

    average loss        1/T     sum_j        R[T][j]
    backward transfer   1/(T-1) sum_(j < T)  R[j][j] - R[T][j]
    forward transfer    1/(T-1) sum_(j > 1)  R[0][j] - R[j-1][j]
    forgetting          1/(T-1) sum_(j < T)  R[T][j] - min_(1 <= i < T) R[i][j]

Average and transfer are those of Lopez-Paz and Ranzato (2017, "Gradient Episodic Memory for Continual Learning"),
forgetting that of Chaudhry et al. (2018, "Riemannian Walk").  They are stated for accuracies, the higher the better; of
losses every difference changes its sign and the best is the lowest, so that the words keep their meaning: positive
transfer means that other tasks helped, positive forgetting that a task is worse than it has been.  What is compared
with before any task has been trained, in the paper a model of random weights, is the model as the sequence found it.
"""

from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]  # [T + 1][T], nats per answer token


def scores(losses: Matrix) -> dict[str, float]:
    """All four of a whole matrix.

    Raises:
        ValueError: if it is not of the shape [T + 1][T] with T of 2 or more.
    """
    tasks = len(losses) - 1
    if tasks < 2 or any(len(row) != tasks for row in losses):
        raise ValueError(f"losses has rows of {[len(row) for row in losses]}; of T >= 2 tasks they are T + 1 rows of T")
    first, last = losses[0], losses[tasks]
    earlier, later = range(tasks - 1), range(1, tasks)  # columns; the loss right after task j is in row j + 1
    return {
        "average_loss": _mean([last[j] for j in range(tasks)]),
        "backward_transfer": _mean([losses[j + 1][j] - last[j] for j in earlier]),
        "forward_transfer": _mean([first[j] - losses[j][j] for j in later]),
        "forgetting": _mean([last[j] - min(losses[i][j] for i in range(1, tasks)) for j in earlier]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
