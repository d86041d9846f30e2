"""The page's named endpoints, called as a program calls them, and what it takes to start."""

from __future__ import annotations

import ast
import base64
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import BrushSegmenter, scripted
from PIL import Image

from segagent.agent import SegAgent
from segagent.export import replay
from segagent.masks import from_rle
from segagent.types import Click

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def client():
    from gradio_client import Client

    import app

    agent = SegAgent(scripted((0.1, Click(20, 15)), (0.7, Click(30, 15)), (0.9, None)), BrushSegmenter())
    demo = app.build(agent=agent)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **app.look())
    yield Client(url, verbose=False)
    demo.close()


@pytest.fixture
def files(tmp_path):
    """(picture, mask) as gradio_client sends them."""
    from gradio_client import handle_file

    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "picture.png")
    mask = np.zeros((40, 50), bool)
    mask[5:10, 5:10] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return handle_file(tmp_path / "picture.png"), handle_file(tmp_path / "mask.png")


def test_segment_refine_and_score(client, files):
    picture, mask = files
    answer = client.predict(image=picture, expression="the disc", steps=5, api_name="/segment")
    assert answer["predicted_iou"] == 0.9
    again = replay(answer["trajectory"], np.zeros((40, 50, 3), np.uint8), BrushSegmenter())
    assert (again.states[-1].mask == from_rle(answer["mask"])).all()
    refined = client.predict(image=picture, expression="the disc", mask=mask, steps=1, api_name="/refine")
    assert from_rle(refined["mask"])[5:10, 5:10].all()
    assert client.predict(image=picture, expression="the disc", mask=mask, api_name="/score") == 0.1


def test_what_is_wrong_reaches_the_caller_in_one_sentence(client, files, tmp_path):
    from gradio_client import handle_file

    words = tmp_path / "words.png"
    words.write_text("no picture")
    for arguments, sentence in (
        ({"image": handle_file(words), "expression": "x"}, "'words.png' is no picture that can be read"),
        ({"image": files[0], "expression": " "}, "The expression is empty"),
        ({"image": files[0], "expression": "x", "steps": -1}, "steps"),
        ({"image": files[0], "expression": "x", "steps": 51}, "steps is at most 50"),
        ({"image": files[0], "expression": "x", "candidates": 99}, "candidates is at most 16"),
    ):
        with pytest.raises(Exception, match=sentence):
            client.predict(**arguments, api_name="/segment")


def test_the_inputs_are_typed_and_documented(client):
    described = client.view_api(return_format="dict")["named_endpoints"]
    given = {p["parameter_name"]: p for p in described["/segment"]["parameters"]}
    assert list(given) == ["image", "expression", "steps", "candidates"]
    assert (given["steps"]["python_type"]["type"], given["steps"]["parameter_default"]) == ("int", 7)
    assert given["expression"]["python_type"]["type"] == "str"
    assert "referring expression" in described["/segment"]["description"]


def test_a_search_by_its_number_of_candidates(client, files):
    answer = client.predict(image=files[0], expression="the disc", steps=2, candidates=2, api_name="/segment")
    assert len(answer["trajectory"]["steps"]) >= 2


def test_mcp_clients_see_three_tools_and_use_them(client, tmp_path):
    """With the protocol's own client: the tools' descriptions, a picture as a data URL, an answer, and a fault."""
    import anyio
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    url = client.src.rstrip("/") + "/gradio_api/mcp/"
    picture, mask = data_url(np.zeros((40, 50, 3), np.uint8)), data_url(np.eye(40, 50, dtype=np.uint8) * 255)

    async def talk() -> tuple:
        async with streamable_http_client(url) as (receive, send, _), ClientSession(receive, send) as session:
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            asked = {"image": picture, "expression": "the disc"}
            calls = [
                await session.call_tool("segment", {**asked, "steps": 5}),
                await session.call_tool("refine", {**asked, "mask": mask, "steps": 1}),
                await session.call_tool("score", {**asked, "mask": mask}),
                await session.call_tool("segment", {**asked, "expression": " "}),
            ]
            return tools, calls, (await session.list_resources()).resources, (await session.list_prompts()).prompts

    tools, (segmented, refined, scored, refused), resources, prompts = anyio.run(talk)
    assert set(tools) == {"segment", "refine", "score"}
    assert resources == prompts == []
    for tool in tools.values():
        assert len(tool.description) > 60
        assert all(p.get("description") for p in tool.inputSchema["properties"].values()), tool.inputSchema
    value = ast.literal_eval(segmented.content[0].text)
    assert value["predicted_iou"] == 0.9
    assert from_rle(value["mask"]).any()
    assert from_rle(ast.literal_eval(refined.content[0].text)["mask"])[0, 0]
    assert float(scored.content[0].text) == 0.1
    assert refused.isError
    assert "The expression is empty" in refused.content[0].text


def data_url(pixels: np.ndarray) -> str:
    from segagent.export import png

    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")


def test_nothing_internal_is_exposed(client):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/segment", "/refine", "/score"}
    assert client.view_api(return_format="dict")["unnamed_endpoints"] == {}


def test_the_page_starts_from_any_folder_without_torch_and_asks_no_outside_host(tmp_path):
    """Imports and builds the page with every outside connection refused."""
    program = (
        "import socket, sys\n"
        "real = socket.socket.connect\n"
        "def connect(self, address):\n"
        "    assert not isinstance(address, tuple) or address[0] in ('127.0.0.1', 'localhost', '::1'), address\n"
        "    return real(self, address)\n"
        "socket.socket.connect = connect\n"
        "socket.getaddrinfo = (lambda f: lambda host, *a, **k: f(host, *a, **k) if host in ('127.0.0.1', 'localhost', None)"
        " else sys.exit(f'looked up {host}'))(socket.getaddrinfo)\n"
        "import app\n"
        "demo = app.build()\n"
        "demo.launch(prevent_thread_lock=True, quiet=True, server_name='127.0.0.1', **app.look())\n"
        "import time; time.sleep(1)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)\n"
        "demo.close()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("GRADIO_ANALYTICS_ENABLED", None)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "False False" in done.stdout.splitlines()
