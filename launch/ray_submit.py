"""`subspace submit ray`: check all that can be checked here, hand the run to a Ray cluster as a job, and follow it.

The resolved configuration travels with the job; files do not. The run folder, the shards and a weights file must be on
storage that every node sees under the same path, so relative paths are made absolute where the command is given. Only
`--working-dir` is uploaded: the code, for clusters where this package is not installed.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import logging
import os
import re
import secrets
import shlex
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.errors import UserError
from launch.config import RunConfig, checked, dump_config, load_config
from launch.ray_room import asked
from launch.status import known_status
from launch.torchrun import RunFailed
from launch.yaml_file import parse

ANSWER_S = 10.0  # how long a dashboard may take to answer, and how long a lost one is looked for
MAX_UPLOAD_BYTES = 100 << 20  # what the job server of Ray 2.60 accepts
log = logging.getLogger(__name__)
CONFIG = "SUBSPACE_JOB_CONFIG"
_API_SERVER, _ADDRESS = "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"


@dataclass(frozen=True)
class SubmitOptions:
    """What the command line says beside the configuration."""

    address: str | None = None
    working_dir: Path | None = None
    run_dir: Path | None = None
    submission_id: str | None = None
    wait: bool = True
    dry_run: bool = False


def submit(config_path: Path, overrides: list[str], options: SubmitOptions) -> int:
    """Run a training as a job of a Ray cluster; return its exit code, or 0 at once without `wait`.

    Raises:
        UserError: what a user can put right, or how the run failed.
    """
    os.environ["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE", "token")  # Ray reads it when it is imported
    config = anchored(load_config(_config_path(config_path, options.working_dir), overrides))
    _check(config)
    run = Path(os.path.abspath(options.run_dir or Path("runs") / config.name))
    if options.working_dir is not None:
        check_size(options.working_dir)
    job = request(config, run, options)
    if options.dry_run:
        print(_description(config, run, job))
        return 0
    from launch import services

    address = _address(options.address)
    services.refuse_open_ray(address)
    _check_token()
    _probe(address)
    client = _client(address)
    job_id = _send(client, job)
    print(f"job {job_id} on {address}; run folder {run}", flush=True)
    print(f"it goes on without this command; to end it: ray job stop --address {address} {job_id}", flush=True)
    return _follow(client, job_id, run) if options.wait else 0


# ---- what is sent --------------------------------------------------------------------------------------------------


def _config_path(path: Path, working_dir: Path | None) -> Path:
    if working_dir is None:
        return path
    if not working_dir.is_dir():
        raise UserError(f"--working-dir {working_dir} is not a folder: give the one that holds CONFIG and the code")
    if not (working_dir / path).is_file():
        raise UserError(f"--working-dir {working_dir} has no {path}: give CONFIG as a path inside of it")
    return working_dir / path


def anchored(config: RunConfig) -> RunConfig:
    """Return the configuration for processes on other machines: absolute paths, and threads that the worker has."""
    data, model, launch = config.data, config.model, config.launch
    build = data.build
    if build is not None and ":" in build:
        kind, _, path = build.partition(":")
        build = f"{kind}:{os.path.abspath(path)}"
    weights = model.weights if model.weights == "random" else os.path.abspath(model.weights)
    threads = launch.threads or max(1, int(config.ray.cpus_per_worker))
    return config.model_copy(
        update={
            "data": data.model_copy(update={"shards": os.path.abspath(data.shards), "build": build}),
            "model": model.model_copy(update={"weights": weights}),
            "launch": launch.model_copy(update={"threads": threads}),
        }
    )


def _check(config: RunConfig) -> None:
    from launch import engines, networks

    networks.check(config)
    engines.check_world_size(config, config.launch.nproc)
    gpus = config.ray.gpus_per_worker
    if config.launch.nproc > 1 and 0 < gpus <= 0.5:
        raise UserError(
            f"--gpus-per-worker {gpus:g} would put two workers on one GPU, which NCCL refuses: give 1, or more than 0.5"
            " to leave a fraction to k-means actors (cluster.num_gpus)"
        )


def check_size(folder: Path) -> None:
    """Raise UserError when Ray would refuse the folder, before it spends minutes on hashing and packing it."""
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    sizes: list[int] = []
    excluded = packaging._get_excludes(folder, ray_constants.get_runtime_env_default_excludes())
    packaging._dir_travel(
        folder.absolute(),
        [excluded],
        lambda path: sizes.append(path.stat().st_size if path.is_file() else 0),
        include_gitignore=True,
        logger=log,
    )
    if sum(sizes) > MAX_UPLOAD_BYTES:
        raise UserError(
            f"--working-dir {folder} has {sum(sizes) >> 20} MiB to upload, and Ray takes {MAX_UPLOAD_BYTES >> 20} MiB:"
            " name what the job does not need (images, runs) in its .gitignore or .rayignore"
        )


def packed(config: RunConfig) -> str:
    """Return the resolved configuration as one word: Ray would expand every `$` in a plain text on its way."""
    return base64.b64encode(dump_config(config).encode()).decode()


def unpacked(word: str) -> RunConfig:
    """Return the configuration that `packed` made a word of."""
    what = "the submitted configuration"
    try:
        text = base64.b64decode(word, validate=True).decode()
    except ValueError:
        raise UserError(f"{what} is not what 'subspace submit ray' sends") from None
    return checked(parse(text, what), what)


def request(config: RunConfig, run: Path, options: SubmitOptions) -> dict[str, Any]:
    """Return the arguments of Ray's `submit_job`. No secret is in it: driver and workers have the cluster's token."""
    variables = {
        CONFIG: packed(config),
        # The supervisor of the job would kill the driver 3 s after a stop; the ranks need time to save.
        "RAY_JOB_STOP_WAIT_TIME_S": str(config.ray.stop_timeout_s + 30),
        "RAY_AUTH_MODE": os.environ["RAY_AUTH_MODE"],
        "RAY_COLOR_PREFIX": "0",
    }
    working_dir = {} if options.working_dir is None else {"working_dir": os.path.abspath(options.working_dir)}
    return {
        "entrypoint": shlex.join(["python", "-m", "launch", "ray-job", str(run)]),
        "submission_id": options.submission_id or f"{_plain(config.name)}-{secrets.token_hex(4)}",
        "runtime_env": {"env_vars": variables, **working_dir},
        "metadata": {"run": str(run)},
    }


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)


def _description(config: RunConfig, run: Path, job: dict[str, Any]) -> str:
    uploaded = job["runtime_env"].get("working_dir", "nothing: this package is installed on every node")
    return "\n".join(
        [
            f"job           {job['submission_id']}",
            f"entrypoint    {job['entrypoint']}",
            f"uploaded      {uploaded}",
            f"run folder    {run} (on storage that all nodes share)",
            f"shards        {config.data.shards} (likewise)",
            f"asks for      {asked(config)}",
        ]
    )


# ---- the cluster ---------------------------------------------------------------------------------------------------


def _address(given: str | None) -> str:
    address = given or os.environ.get(_API_SERVER) or os.environ.get(_ADDRESS)
    if not address:
        raise UserError("which Ray cluster? give --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS")
    if not address.startswith(("http://", "https://")):
        raise UserError(f"--address {address} is not the address of a dashboard: write http://HEAD:8265")
    os.environ[_API_SERVER] = address  # Ray's client prefers these variables to what it is given
    return address.rstrip("/")


def _check_token() -> None:
    """Raise UserError when there is no token; Ray would warn and be refused."""
    if os.environ["RAY_AUTH_MODE"] != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        found = bool(path.read_text().strip())
    except (OSError, UnicodeDecodeError):
        found = False
    if not found:
        raise UserError(
            f"no token for the Ray cluster: {path} has none; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with"
            " the cluster's token"
        )


def _probe(address: str) -> None:
    """Raise UserError unless a Ray dashboard answers soon; Ray's own client waits for minutes. Sends no token."""
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=ANSWER_S) as answer:  # noqa: S310 - http by `_address`
            is_ray, is_open = "ray_version" in json.load(answer), True
    except urllib.error.HTTPError as error:
        is_ray, is_open = error.code in (401, 403), False
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"no Ray dashboard answers at {address} ({reason}); check --address and that it runs") from None
    if not is_ray:
        raise UserError(f"what answers at {address} is no Ray dashboard; check --address")
    if is_open and os.environ["RAY_AUTH_MODE"] == "token":
        raise UserError(
            f"the Ray cluster at {address} lets anybody run code: start it with RAY_AUTH_MODE=token on every node"
        )


def _client(address: str) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise UserError(
            f"the Ray cluster at {address} refuses the token: RAY_AUTH_TOKEN (or the file that RAY_AUTH_TOKEN_PATH"
            " names) must be the one that the cluster was started with"
        ) from None


def _send(client: Any, job: dict[str, Any]) -> str:
    try:
        return str(client.submit_job(**job))
    except (RuntimeError, ValueError) as error:
        if "already exists" in str(error):
            raise UserError(
                f"the cluster has a job {job['submission_id']} already: give another --submission-id"
            ) from None
        raise UserError(f"the Ray cluster did not take the job: {str(error).strip().splitlines()[0]}") from None


# ---- until the end -------------------------------------------------------------------------------------------------


def _follow(client: Any, job_id: str, run: Path) -> int:
    """Print the log of the job while it runs; return the exit code of its driver, which is that of status.json."""
    _show_log(client, job_id)
    info = client.get_job_info(job_id)
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code) if info.driver_exit_code >= 0 else 70
    status = known_status(run)  # a stopped job has no exit code
    if status.get("state") in ("completed", "preempted"):
        return int(status.get("exit_code") or 0)
    message = str(info.message or "").strip().splitlines()
    raise RunFailed(f"job {job_id} ended as {info.status.value}{': ' + message[0] if message else ''}", 70)


def _show_log(client: Any, job_id: str) -> None:
    """Print the log until the job has ended; a connection that breaks is made again, and then the log begins anew."""
    shown, lost_since = 0, None

    async def show() -> None:
        nonlocal shown
        seen = 0
        async for text in client.tail_job_logs(job_id):
            new = text[max(0, shown - seen) :]
            seen += len(text)
            shown = max(shown, seen)
            print(new, end="", flush=True)

    while True:
        try:
            asyncio.run(show())
            if client.get_job_status(job_id).is_terminal():
                return
            lost_since = None
        except (OSError, RuntimeError, _connection_error()) as error:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > ANSWER_S:
                raise UserError(
                    f"lost the Ray cluster ({error}); job {job_id} may go on: ray job status {job_id}"
                ) from None
        time.sleep(1)


def _connection_error() -> type[Exception]:
    import aiohttp

    error: type[Exception] = aiohttp.ClientError
    return error
