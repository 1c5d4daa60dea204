"""Learn from the parent: how far a student's raw outputs are from its teacher's (knows no host).

Notation: B images, A anchors (all levels together), C classes, K bins for each of the 4 sides of a box.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def anchor_weights(teacher_scores: Tensor) -> Tensor:
    """Return how much each anchor matters: the teacher's highest class probability there.

    Args:
        teacher_scores: Class logits (B, C, A).

    Returns:
        Weights in [0, 1], shape (B, A), without gradient.
    """
    return teacher_scores.detach().float().sigmoid().amax(dim=1)


def score_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence of the class probabilities, zero when student and teacher agree.

    The Kullback-Leibler divergence of C independent Bernoulli variables, summed over anchors and classes and
    divided by the sum of the anchor weights, the way detectors normalise their classification loss:
    ``sum_a,c KL(sigmoid(t) || sigmoid(s)) / sum_a w``.

    Args:
        student: Class logits (B, C, A).
        teacher: Class logits (B, C, A) of the same images.

    Returns:
        Scalar, float32, in nats.
    """
    student, target_logits = student.float(), teacher.detach().float()
    target = target_logits.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student, target, reduction="sum")
    entropy = F.binary_cross_entropy_with_logits(target_logits, target, reduction="sum")
    return (cross - entropy) / anchor_weights(teacher).sum().clamp(min=1.0)


def box_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Divergence of the boxes, weighted by how sure the teacher is that there is an object.

    Boxes that are distributions over K > 1 bins a side: ``sum_a w_a mean_sides KL(t || s) / sum_a w_a``.
    Boxes that are plain distances (K = 1): the smooth L1 distance instead of the divergence.

    Args:
        student: Box logits (B, 4 K, A).
        teacher: Box logits (B, 4 K, A).
        weights: Anchor weights (B, A).

    Returns:
        Scalar, float32, in nats (K > 1) or cells of the anchor's grid (K = 1).
    """
    batch, channels, anchors = student.shape
    student = student.float().view(batch, 4, channels // 4, anchors)
    teacher = teacher.detach().float().view(batch, 4, channels // 4, anchors)
    if channels == 4:
        distance = F.smooth_l1_loss(student, teacher, reduction="none").sum(dim=2)
    else:
        log_student, log_teacher = student.log_softmax(dim=2), teacher.log_softmax(dim=2)
        distance = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=2)
    return (distance.mean(dim=1) * weights).sum() / weights.sum().clamp(min=1.0)


def class_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Divergence of softened class probabilities of a classifier, ``T^2 KL(softmax(t/T) || softmax(s/T))``.

    Args:
        student: Logits (B, C).
        teacher: Logits (B, C).
        temperature: T, the softening.

    Returns:
        Scalar, float32, mean over the images, in nats.

    Source:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2.
    """
    log_student = (student.float() / temperature).log_softmax(dim=1)
    log_teacher = (teacher.detach().float() / temperature).log_softmax(dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2
