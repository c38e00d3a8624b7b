"""A real Orthanc on loopback for the length of a test."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE_S, wait_until


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Orthanc:
    """Runs from construction until `close`; also a context manager.

    Args:
        program: path of the Orthanc executable.
        folder: for its configuration, storage and log.
        modalities: name to (AE title, port) on loopback.
        route_all_to: the modality that gets everything Orthanc receives, whoever sent it.
        dicom_port: to reuse one; None takes a free one.
        plugins: paths of plugins to load.
        scripts: paths of Lua scripts to load.
        **more: more of Orthanc's own keys.
    """

    def __init__(
        self,
        program: str,
        folder: Path,
        modalities: Mapping[str, tuple[str, int]] | None = None,
        route_all_to: str | None = None,
        dicom_port: int | None = None,
        plugins: Sequence[str] = (),
        scripts: Sequence[Path] = (),
        **more: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ae_title = "ORTHANC"
        self.dicom_port = dicom_port or free_port()
        self.http_port = free_port()
        configuration: dict[str, Any] = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": self.ae_title,
            "DicomCheckCalledAet": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "UnknownSopClassAccepted": True,
            "Plugins": list(plugins),
            "DicomModalities": {name: [ae_title, "127.0.0.1", port] for name, (ae_title, port) in (modalities or {}).items()},
        }
        configuration |= more
        configuration["LuaScripts"] = [str(script) for script in scripts]
        if route_all_to is not None:
            script = folder / "route.lua"
            script.write_text(
                "function OnStoredInstance(instanceId, tags, metadata, origin)\n"
                f"  SendToModality(instanceId, '{route_all_to}')\n"
                "end\n"
            )
            configuration["LuaScripts"].append(str(script))
        path = folder / "orthanc.json"
        path.write_text(json.dumps(configuration))
        self._log = (folder / "orthanc.log").open("wb")
        self._process = subprocess.Popen(
            [program, str(path)], stdout=self._log, stderr=self._log, env={**os.environ, "TCP_NODELAY": "1"}
        )
        wait_until(self._answers, f"Orthanc's start, see {folder / 'orthanc.log'}")

    def get(self, path: str) -> Any:
        """JSON of a REST path."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=PATIENCE_S) as response:
            return json.load(response)

    def instances(self) -> list[dict[str, Any]]:
        """Every instance: ID, MainDicomTags, with StudyInstanceUID, Modality and SOPClassUID added."""
        found = []
        for instance in self.get("/instances?expand"):
            tags = self.get(f"/instances/{instance['ID']}/simplified-tags")
            found.append({**instance, "tags": tags})
        return found

    def store(self, content: bytes) -> str:
        """Hand it a DICOM file over HTTP; its own ID of the instance."""
        return str(self._post("/instances", content)["ID"])

    def file_of(self, sop_instance_uid: str) -> bytes:
        """The instance with this UID as a DICOM file."""
        [found] = self._post("/tools/lookup", sop_instance_uid.encode())
        return self.file(found["ID"])

    def delete(self, instance_id: str) -> None:
        """Forget an instance."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}/instances/{instance_id}", method="DELETE")
        urllib.request.urlopen(request, timeout=PATIENCE_S).close()

    def execute(self, script: str) -> None:
        """Run Lua in it; needs `ExecuteLuaEnabled=True`."""
        url = f"http://127.0.0.1:{self.http_port}/tools/execute-script"
        urllib.request.urlopen(urllib.request.Request(url, script.encode(), method="POST"), timeout=PATIENCE_S).close()

    def count(self) -> int:
        """How many instances it holds."""
        return int(self.get("/statistics")["CountInstances"])

    def file(self, instance_id: str) -> bytes:
        """An instance as a DICOM file."""
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.http_port}/instances/{instance_id}/file", timeout=PATIENCE_S
        ) as response:
            return bytes(response.read())

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Orthanc:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, path: str, body: bytes) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", body, method="POST")
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return json.load(response)

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"Orthanc ended with {self._process.returncode}"
        try:
            self.get("/system")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True
