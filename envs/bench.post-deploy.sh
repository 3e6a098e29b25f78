#!/usr/bin/env bash
# What envs/bench.yaml cannot hold. Snakemake runs this by itself in the environment that --use-conda has made,
# `make` in .venv; by hand: PATH=.venv/bin:$PATH bash envs/bench.post-deploy.sh
set -euo pipefail
pip=(python -m pip --quiet --disable-pip-version-check install --no-deps)

# These two ask for versions of other packages that cannot stand beside ours, or for dozens that we never call.
# What we do call of them needs the pins of bench.yaml only.
"${pip[@]}" scgpt==0.2.4 omicverse==2.3.2

# scBERT's network is a folder of its repository, which is no package: this makes it one, scbert-performer, whose
# version is the commit. Git checks the content by the commit's hash. A mirror is told to git by its own
# url.<mirror>.insteadOf. Without GitHub the rest works, and scBERT's rows say not_installed.
repository=${1:-https://github.com/TencentAILabHealthcare/scBERT}
commit=${2:-262fd4b91f3f1c21a6e595d03d4ef423e16ffc99}

fetch() { # into the folder $1
  export GIT_TERMINAL_PROMPT=0
  git init --quiet "$1" \
    && timeout 120 git -C "$1" fetch --quiet --depth 1 "$repository" "$commit" \
    && git -C "$1" checkout --quiet --detach "$commit"
}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if reason=$(fetch "$folder" 2>&1); then
  cat > "$folder/pyproject.toml" << END
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "scbert-performer"
version = "0+g$commit"
[tool.setuptools]
packages = ["performer_pytorch"]
END
  "${pip[@]}" --no-build-isolation "$folder"
else
  echo "scBERT not installed: $repository could not be fetched (${reason##*$'\n'})" >&2
fi
