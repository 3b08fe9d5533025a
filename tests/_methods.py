"""Methods between tiny networks, batches for them, and what tests ask of both."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from _networks import IMAGE_SHAPE, NUM_CLASSES, network, teacher_of
from torch import Tensor, nn

from kdsteps.methods.base import Batch, Method, Task
from kdsteps.models.chain import Chain
from kdsteps.plans.layer_pairs import plan_pairs
from kdsteps.plans.stones import plan_stones
from kdsteps.study import registry
from kdsteps.study.joints import pair_stages

NUM_IMAGES = 40  # of the training part
BATCH_SIZE = 8

PAIRS = [
    ("large resnet", "resnet"),
    ("large wide resnet", "resnet"),
    ("large resnet", "mobilenet"),
    ("large vit", "vit"),
    ("large vit", "resnet"),
    ("large resnet", "vit"),
]
"""Teacher and student: another width, pre-activation, other map sizes, tokens on either side."""

DEFAULT_PAIR = PAIRS[0]

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("block_kd", {"norm": "batch", "distance": "dkd", "weigh_cross": True}),
    ("block_kd", {"distance": "dist", "cross_student": False, "detach_ensemble": False}),
    ("contrastive_logits", {"views": ["instance", "category"]}),
    ("crd", {"mode": "relax", "negatives": 2}),  # so few that rows of the memories are fetched
    ("dkd", {"standardize": True}),
    ("embedding", {"local_weight": 0, "queue": 5}),  # fewer than a batch
    ("feature_only", {"mapping": "all_to_all", "distance": "distribution"}),
    ("feature_only", {"mapping": "attention", "distance": "huber", "detach": "head"}),
    ("feature_only", {"distance": "cosine", "classifier_after": 100}),
    ("fitnet", {"kd_weight": 1.0}),
    ("labels", {"label_smoothing": 0.1}),
    ("semckd", {"scale_teacher": False}),
    ("simkd", {"labels_weight": 1.0, "kd_weight": 1.0}),
    ("sld", {"self_after": 0, "self_detach": True}),
]
"""Options with which methods run other operations than by default."""
CASES = [(name, {}) for name in registry.names("methods")] + OPTIONS


def plan_of(kind: str | None, teacher: Chain, student: Chain) -> dict[str, Any] | None:
    """What the stage `build` would hand to a method with this kind of plan."""
    if kind is None:
        return None
    if kind == "stones":
        joints = pair_stages(teacher, student)
        return {"stones": plan_stones(teacher, student, IMAGE_SHAPE, joints, "conv_norm")}
    count = min(len(teacher.stages), len(student.stages))
    pairs = plan_pairs(
        teacher,
        student,
        IMAGE_SHAPE,
        student_layers=None,
        teacher_layers=teacher.stages[-count:],
        projector="conv",
    )
    return {"pairs": pairs}


def class_of(name: str) -> type[Method]:
    found: type[Method] = registry.load("methods", name)
    return found


def make(
    name: str,
    pair: tuple[str, str] = DEFAULT_PAIR,
    *,
    seed: int = 0,
    teacher: Chain | None = None,
    device: str = "cpu",
    **options: Any,
) -> Method:
    """A method between two networks of `ENTRIES`, with the seed a run would have."""
    kind = class_of(name)
    teacher = teacher_of(pair[0]) if teacher is None else teacher
    student = network(pair[1], seed)
    labels = torch.arange(NUM_IMAGES) % NUM_CLASSES
    plan = plan_of(kind.plan, teacher, student)
    task = Task(IMAGE_SHAPE, NUM_CLASSES, labels, plan, batch_size=BATCH_SIZE)
    torch.manual_seed(seed)
    given = None if kind.wants == "nothing" else teacher.to(device)
    return kind(given, student.to(device), task, **options).to(device).train()


def batch_of(seed: int = 0, epoch: int = 5, count: int = BATCH_SIZE, device: str = "cpu") -> Batch:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(NUM_IMAGES, generator=generator)[:count]
    images = torch.randn(count, *IMAGE_SHAPE, generator=generator)
    index, images = index.to(device), images.to(device)
    return Batch(images, index % NUM_CLASSES, index, torch.zeros_like(index), epoch)


def terms_of(method: Method, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return method.terms(batch)


def step(method: Method, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    """One training step at a small rate."""
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    terms = terms_of(method, batch, seed)
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    method.zero_grad()
    return terms


def fingerprint(chain: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in chain.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def count_calls(chain: Chain) -> list[str]:
    """A list that grows by a name whenever a part of the network runs."""
    calls: list[str] = []
    for name, module in chain.named_modules():
        module.register_forward_pre_hook(lambda module, inputs, name=name: calls.append(name))
    return calls


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(
        torch.equal(first[key], second[key]) for key in first
    )
