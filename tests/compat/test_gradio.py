"""A page for the Gradio of 2024 over the Gradio that is installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compat.conftest import Forks, write
from minicpm.compat.gradio_2024 import as_pairs

pytest.importorskip("gradio")

# The constructs of the release's demo/hf_based_demo.py: `generate` in a thread, the page reading a streamer, a history
# of pairs that a handler changes in place, gr.update, and arguments that Gradio has dropped since.
DEMO = """
import argparse
from threading import Thread

import gradio as gr
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

parser = argparse.ArgumentParser()
parser.add_argument("--model_path", type=str, default="")
parser.add_argument("--server_port", type=int, default=7860)
args = parser.parse_args()
tokenizer = AutoTokenizer.from_pretrained(args.model_path)
model = AutoModelForCausalLM.from_pretrained(
    args.model_path, torch_dtype=torch.float32, device_map="auto", trust_remote_code=True
)


def answers(dialog, max_dec_len):
    inputs = tokenizer.apply_chat_template(dialog, tokenize=False, add_generation_prompt=False)
    enc = tokenizer(inputs, return_tensors="pt").to("cuda")
    streamer = TextIteratorStreamer(tokenizer)
    options = dict(enc, do_sample=True, top_p=0.8, temperature=0.8, max_new_tokens=max_dec_len, streamer=streamer)
    Thread(target=model.generate, kwargs=options).start()
    answer = ""
    for new_text in streamer:
        answer += new_text
        yield answer[4 + len(inputs):]


def generate(chat_history, query, max_dec_len):
    dialog = []
    for q, a in chat_history:
        dialog += [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
    chat_history.append([query, ""])
    for answer in answers([*dialog, {"role": "user", "content": query}], max_dec_len):
        chat_history[-1][1] = answer.strip("</s>")
        yield gr.update(value=""), chat_history


def reverse_last_round(chat_history):
    return chat_history[:-1]


with gr.Blocks(theme="soft") as demo:
    gr.Markdown("# A page of 2024")
    with gr.Row():
        with gr.Column(scale=1):
            max_dec_len = gr.Slider(1, 1024, value=1024, step=1, label="max_dec_len")
        with gr.Column(scale=5):
            chatbot = gr.Chatbot(bubble_full_width=False, height=400)
            user_input = gr.Textbox(label="User", placeholder="Input your query here!", lines=8, show_copy_button=True)
            submit, reverse, clear = gr.Button("Submit"), gr.Button("Reverse"), gr.Button("Clear")
    submit.click(generate, inputs=[chatbot, user_input, max_dec_len], outputs=[user_input, chatbot])
    reverse.click(reverse_last_round, inputs=[chatbot], outputs=[chatbot])
    clear.click(lambda: [], inputs=[], outputs=[chatbot], _js=None)

demo.queue(concurrency_count=2)
demo.launch(server_port=args.server_port, show_error=True, show_api=False)
"""

# Asks the page through Gradio's own HTTP interface, prints what its chatbot shows, and ends the process.
VISITOR = """
import json, os, runpy, socket, sys, threading, time, traceback, urllib.request

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
page = f"http://127.0.0.1:{port}/gradio_api/call/"


def call(name, *data):
    body = json.dumps({"data": list(data)}).encode()
    request = urllib.request.Request(page + name, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(page + name + "/" + event) as response:
        lines = response.read().decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line != "data: null"]


def visit():
    try:
        while True:
            try:
                urllib.request.urlopen(page[:-len("gradio_api/call/")]).close()
                break
            except OSError:
                time.sleep(0.1)
        pieces = call("generate", [], "hello", 40)
        second = call("generate", pieces[-1][1], "again", 4)
        print(json.dumps({"pieces": pieces, "second": second, "reversed": call("reverse_last_round", second[-1][1])}))
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    os._exit(0)


threading.Thread(target=visit, daemon=True).start()
sys.argv = [DEMO, "--model_path", MODEL, "--server_port", str(port)]
runpy.run_path(DEMO, run_name="__main__")
"""


def test_the_demo_of_2024_meets_the_installed_gradio_and_really_streams(
    compat: Forks, model_folder: Path, tmp_path: Path
):
    demo = write(tmp_path / "hf_based_demo.py", DEMO)
    raw = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    write(model_folder / "config.json", json.dumps(raw | {"eos_token_id": 2}))  # an answer of some length
    names = f"DEMO, MODEL = {str(demo)!r}, {str(model_folder)!r}\n"
    done = compat(write(tmp_path / "visitor.py", names + VISITOR))
    assert done.stdout, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    chats = [chat for _, chat in shown["pieces"]]
    assert all([message["role"] for message in chat] == ["user", "assistant"] for chat in chats)
    texts = [chat[1]["content"][0]["text"] for chat in chats]
    assert len(texts) > 3 and texts == sorted(texts, key=len)
    assert [message["role"] for message in shown["second"][-1][1]] == ["user", "assistant"] * 2
    assert shown["reversed"][-1] == [chats[-1]]
    for gone in ("'bubble_full_width' in gr.Chatbot", "'show_copy_button' in gr.Textbox", "'concurrency_count'"):
        assert done.stderr.count(f"this Gradio has no {gone}") == 1


def test_messages_become_pairs_that_a_script_can_write_in():
    text = [{"type": "text", "text": "Hi"}]
    messages = [
        {"role": "assistant", "content": [{"type": "text", "text": "Welcome"}]},
        {"role": "user", "content": text},
        {"role": "assistant", "content": text},
        {"role": "user", "content": [{"type": "file", "file": {"path": "cat.png"}}]},
        {"role": "user", "content": "plain"},
    ]
    assert as_pairs(messages) == [[None, "Welcome"], ["Hi", "Hi"], [("cat.png",), None], ["plain", None]]


# Pages of other years and habits, and what they print. Importing Gradio takes seconds, so one process builds all.
PAGES = """
import gradio as gr

MESSAGES = [{"role": "user", "content": "Hi"}]
with gr.Blocks():
    bot = gr.Chatbot(value=MESSAGES)
    print("messages:", bot.preprocess(bot.postprocess(MESSAGES))[0]["role"])
    bot = gr.Chatbot(type="messages", show_copy_button=True)
    print("Gradio 5:", bot.preprocess(bot.postprocess(MESSAGES))[0]["role"])
    bot = gr.Chatbot([[None, "Welcome"], ("Hi", None)])
    print("pairs:", bot.preprocess(bot.postprocess([(None, "Welcome"), ["Hi", "Yes"]])))
    print("empty:", gr.Chatbot(bubble_full_width=False).preprocess(None))
    box = gr.Textbox().style(container=False)
    gr.Box()
    print("Gradio 3:", gr.Textbox.update(value="x")["value"], type(box).__name__)
try:
    gr.Chatbot(bubble_ful_width=True)
except TypeError as error:
    print("no such argument:", "bubble_ful_width" in str(error))
"""


def test_pages_of_other_years_find_what_they_expect(compat: Forks, tmp_path: Path):
    done = compat(write(tmp_path / "page.py", PAGES))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "messages: user",
        "Gradio 5: user",
        "pairs: [[None, 'Welcome'], ['Hi', 'Yes']]",
        "empty: []",
        "Gradio 3: x Textbox",
        "no such argument: True",
    ]
