"""The buttons of a form: which can be pressed while a run goes on."""

# The button that runs and the one that stops, switched in the browser: Stop also has to work while the run waits.
_RUNNING = "[false, true].map((on) => ({__type__: 'update', interactive: on}))"
_IDLE = "[true, false].map((on) => ({__type__: 'update', interactive: on}))"
_SETTLE = 300  # milliseconds in which the events of a stopped run arrive


class Buttons:
    """JavaScript that switches the buttons of a form as its runs begin, end and are stopped.

    The end of a stopped run is told several times, within a moment, before or after Stop has done its work. Were it
    heeded, a run that began meanwhile could not be stopped.

    Args:
        name: of the form.
        running, idle: expressions for an array with an update of each button.
        count: of buttons.
    """

    def __init__(self, name: str, running: str = _RUNNING, idle: str = _IDLE, count: int = 2) -> None:
        stopping = f"(window.stopping ??= {{}}).{name}"
        self.begun = f"() => {running}"
        self.ended = f"() => {stopping} ? Array({count}).fill({{__type__: 'update'}}) : {idle}"
        self.stop = f"() => {{ {stopping} = true; }}"
        self.stopped = f"""async () => {{
          await new Promise((done) => setTimeout(done, {_SETTLE}));
          {stopping} = false;
          return {idle};
        }}"""
