"""A Serve file's mistakes are found before anything starts, all of them, with their place."""

from pathlib import Path

import pytest
import yaml

from cluster.errors import ConfigError
from infra.serve_file import read_serve_file

SHIPPED = Path(__file__).parents[2] / "deployments"


@pytest.mark.parametrize("name", ["serve.yaml", "serve-emulated.yaml"])
def test_the_shipped_files_are_right_and_listen_where_the_cluster_says(name: str) -> None:
    file = read_serve_file(SHIPPED / name, port=8123, keys_file=Path("keys.yaml"))
    assert file.config["http_options"] == {"host": "127.0.0.1", "port": 8123}
    assert file.gateway.keys_file == "keys.yaml"
    assert set(file.model_names) < set(file.application_names)


def test_a_keys_file_that_the_file_names_is_kept(tmp_path: Path) -> None:
    content = yaml.safe_load((SHIPPED / "serve.yaml").read_text())
    content["applications"][0]["args"]["keys_file"] = "/etc/keys.yaml"
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    file = read_serve_file(tmp_path / "s.yaml", port=1, keys_file=Path("other.yaml"))
    assert file.gateway.keys_file == "/etc/keys.yaml"


def test_every_mistake_is_listed_with_application_and_key(tmp_path: Path) -> None:
    content = yaml.safe_load((SHIPPED / "serve-emulated.yaml").read_text())
    content["applications"][0]["args"]["replicas"] = 0
    content["applications"][1]["args"] = {**content["applications"][1]["args"], "colour": "red"}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as refused:
        read_serve_file(tmp_path / "s.yaml", port=1, keys_file=Path("k"))
    assert "gateway.args.replicas" in str(refused.value)
    assert "llama-3.1-8b-emulated.args.colour" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "syntax error"), ("- 1", "must hold a mapping"), ("{}", "build_gateway")],
    ids=["not YAML", "not a mapping", "no gateway"],
)
def test_a_file_of_another_kind_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_serve_file(tmp_path / "s.yaml", port=1, keys_file=Path("k"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml must be a readable file"):
        read_serve_file(tmp_path / "none.yaml", port=1, keys_file=Path("k"))
