"""Build every part of configurations, one JSON line each: `python -m tests.faults.build_accepted FILE HOW_MANY`.

A part is made, or refused in one sentence for what only the library behind it can tell; anything else is a failure.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from data_shards.errors import UserError
from launch import build, engines, networks, objective
from launch.config import RunConfig, checked
from trainer.optim import parameter_groups

BIGGEST = 4096  # of numbers that take memory: the sample is about kinds, not about sizes


def parts(config: RunConfig) -> None:
    networks.check(config)
    engines.check_world_size(config, 1)
    objective.check_names(config)
    for make in (build.transform, build.batch_rule, build.growth_policy, build.plan_config):
        make(config)
    objective.build_objective(config, num_classes=3)
    build.controller_config(config)
    build.embed_options(config)
    build.loop_options(config, None)
    network = networks.model(config)
    groups = parameter_groups(network, config.optim.lr, config.optim.embedding_lr)
    engines.optimiser(config)(groups)
    build.fresh_state(config)


def main(lines: list[str]) -> dict[str, object]:
    torch.set_num_threads(1)
    built, refused, uncaught = 0, {}, []  # type: int, dict[str, int], list[str]
    for line in lines:
        config = checked(json.loads(line), "it")
        if config.model.num_dims > BIGGEST:
            continue
        try:
            parts(config)
            built += 1
        except UserError as error:
            assert error.exit_code == 2 and str(error).isprintable()
            reason = str(error)[:30]
            refused[reason] = refused.get(reason, 0) + 1
        except BaseException as error:
            uncaught.append(f"{type(error).__name__}: {error!r:.300} {line[:2000]}")
    return {"built": built, "refused": refused, "uncaught": uncaught}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]).read_text().splitlines()[: int(sys.argv[2])])))
