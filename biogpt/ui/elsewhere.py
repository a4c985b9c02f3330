"""The tab that says how programs use the page: Python, curl, JavaScript and MCP."""

import html

DEFAULT_ADDRESS = "http://127.0.0.1:7860"

PYTHON = """
from gradio_client import Client  # pip install gradio_client

client = Client("{address}")
job = client.submit("COVID-19 is", max_new_tokens=40, seed=1, api_name="/generate")
for update in job:  # one a token
    print(update["text"])

print(client.predict("Insulin lowered glucose.", labels=["cancer", "diabetes"], api_name="/classify"))
"""

CURL = """
# Ask; arguments that are left out take their defaults.
id=$(curl -s {address}/gradio_api/call/v2/generate -H 'Content-Type: application/json' \\
  -d '{"prompt": "COVID-19 is", "max_new_tokens": 40}' | grep -o '[0-9a-f]\\{32\\}')

# Read the answer as it is made: server-sent events, one a token.
curl -sN {address}/gradio_api/call/generate/$id
"""

JAVASCRIPT = """
const answer = await fetch("{address}/v1/completions", {
  method: "POST",
  headers: {"Content-Type": "application/json"},
  body: JSON.stringify({prompt: "COVID-19 is", max_tokens: 40}),
});
console.log((await answer.json()).choices[0].text);
"""

MCP = """
{"mcpServers": {"biogpt": {"url": "{address}/gradio_api/mcp/"}}}
"""


def filled(code: str, address: str) -> str:
    """The code for a page at this address."""
    return code.strip().replace("{address}", address)


def elsewhere(address: str) -> str:
    """The content of the tab as HTML."""
    sections = (
        ("Python", "Any program, with the small package gradio_client.", PYTHON),
        ("Command line", "With curl alone. /ner and /classify work the same way.", CURL),
        ("JavaScript", "In a browser or in Node.", JAVASCRIPT),
        ("MCP", "For assistants that use tools: start with python app.py --mcp, then add this server.", MCP),
    )
    blocks = "".join(
        f'<section><h2>{title}</h2><p>{text}</p><button aria-label="Copy the {title} example">Copy</button>'
        f'<pre tabindex="0" aria-label="{title} example"><code>'
        f"{html.escape(filled(code, address))}</code></pre></section>"
        for title, text, code in sections
    )
    return (
        '<div class="programs"><p>The page answers programs, too: <code>/generate</code> continues a text, '
        "<code>/ner</code> finds entities and <code>/classify</code> labels a text. All arguments are listed "
        "under “Use via API” at the foot of the page. Clients of OpenAI’s API find "
        "<code>/v1/completions</code>, and more, as <code>/v1/docs</code> says. <code>/health</code> "
        f"answers 200 when the model is ready, and 503 before.</p>{blocks}</div>"
    )
