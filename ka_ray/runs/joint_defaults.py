"""Choose how a student learns jointly behind its start, from its network and from the number of images."""

from ka_ray.config import Config
from ka_ray.config.base import with_defaults
from ka_ray.stages.joint import chooses_student
from ka_ray.student.plan import Plan
from ka_ray.training.batches import count_held_out

MIN_STEPS = 300
"""Fewer images than so many steps need in the usual number of epochs get more epochs."""

MAX_EPOCHS = 30
"""No more epochs than so many, however few images there are."""

LAYER_NORM_RATE = 1e-4
"""Peak learning rate of networks with layer norms, such as transformers and ConvNeXts."""


def choose_joint_defaults(config: Config, plan: Plan, num_images: int) -> Config:
    """Choose the epochs and the learning rate of joint learning, where the config does not say them.

    Without a start, the config's own defaults stay.

    Args:
        config: The config of a student.
        plan: The plan of this student.
        num_images: Number of images that the run reads for its students.

    Returns:
        The config with both values. They still count as not given, so that they are chosen again if the
        config is changed.
    """
    joint = config.joint
    if config.student.start == "random" or not joint.any_steps:
        return config
    defaults = dict[str, float]()
    if joint.images is None:
        num_learned = num_images - count_held_out(num_images) if chooses_student(config) else num_images
        steps_per_epoch = max(1, num_learned // joint.batch_size)
        defaults["epochs"] = min(MAX_EPOCHS, max(joint.epochs, -(-MIN_STEPS // steps_per_epoch)))
    if plan.has_layer_norms:
        defaults["learning_rate"] = LAYER_NORM_RATE
    return config.model_copy(update={"joint": with_defaults(joint, defaults)})


def describe_joint_defaults(config: Config, chosen: Config) -> str | None:
    """Return what :func:`choose_joint_defaults` chose, for the user; None: what the config has by itself.

    Args:
        config: The config before.
        chosen: The config behind it.
    """
    reasons = {
        "epochs": "because there are few images",
        "learning_rate": "because the student's network has layer norms",
    }
    changed = [
        f"{key}: {getattr(chosen.joint, key):g}, {reason}"
        for key, reason in reasons.items()
        if getattr(chosen.joint, key) != getattr(config.joint, key)
    ]
    return f"joint: {'; '.join(changed)}" if changed else None
