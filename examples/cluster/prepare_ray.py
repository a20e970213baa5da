"""A data set prepared by tasks of a Ray cluster, then committed (`pip install 'hpdm[ray]'`):

    python examples/cluster/prepare_ray.py ./data --source captions.jsonl --name clips --parts 64

On a cluster run it on the head node, or with `ray job submit`; DATA must be a folder that all
machines share, or a URL (s3://bucket/data). Without a cluster it starts one with `--cpus`
processes on this machine. A task whose worker was killed runs again, and skips what it had done.
"""

import argparse
import json
import subprocess
import sys

import ray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--source", required=True, help="a list of captions, or a folder")
    parser.add_argument("--name", required=True)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--retries", type=int, default=3, help="of a part whose worker was killed")
    parser.add_argument("--cpus", type=int, help="start a cluster of that size on this machine")
    options = parser.parse_args()
    if options.cpus is None:
        ray.init(address="auto")
    else:
        ray.init(num_cpus=options.cpus, include_dashboard=False)
    kind = "captions" if options.source.endswith((".jsonl", ".csv")) else "folder"
    words = ["prep", kind, options.data, "--source", options.source, "--name", options.name]
    part = ray.remote(num_cpus=1, max_retries=options.retries)(hpdm)
    tasks = [
        part.remote(*words, "--shard", f"{number}/{options.parts}", "--workers", "1")
        for number in range(options.parts)
    ]
    while tasks:
        (done,), tasks = ray.wait(tasks)
        result = ray.get(done)
        print(f"part {result['shard']}: {result['usable']}", flush=True)
    result = hpdm("prep", "commit", f"{options.data}/{options.name}")
    print(f"{result['folder']}: {result['usable']}")


def hpdm(*words: str) -> dict:
    """Run a command of hpdm; return what it prints as JSON."""
    command = [sys.executable, "-m", "hpdm_cli", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    result = json.loads(done.stdout)
    if done.returncode:
        raise SystemExit(f"hpdm {' '.join(words)}: {result['error']}")
    return result


if __name__ == "__main__":
    main()
