"""EC2's XML answers: read, changed, made up."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes


def render_error(code: str, status: int) -> Answer:
    text = (
        f"<Response><Errors><Error><Code>{code}</Code><Message>{code}, as the test asked."
        "</Message></Error></Errors><RequestID>0</RequestID></Response>"
    )
    return Answer(status, text.encode())


def _local(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def find(root: ET.Element, name: str) -> ET.Element | None:
    return next((one for one in root.iter() if _local(one) == name), None)


def _sets(root: ET.Element) -> Sequence[ET.Element]:
    return [one for one in root.iter() if _local(one) == "instancesSet"]


def _id_of(item: ET.Element) -> str:
    found = next((one for one in item if _local(one) == "instanceId"), None)
    return (found.text or "") if found is not None else ""


def list_instance_ids(body: bytes) -> list[str]:
    return [_id_of(item) for instances in _sets(ET.fromstring(body)) for item in instances]


def without(body: bytes, hidden: set[str]) -> bytes:
    root = ET.fromstring(body)
    for instances in _sets(root):
        for item in list(instances):
            if _id_of(item) in hidden:
                instances.remove(item)
    return render(root)


def render(root: ET.Element) -> bytes:
    namespace = root.tag.partition("}")[0].removeprefix("{")
    return ET.tostring(root, default_namespace=namespace if "}" in root.tag else None)
