// The page of the policy server. All text from outside becomes text nodes, never HTML.
"use strict";

const SIMULATOR = "page"; // the demo's name among the robots
const $ = (id) => document.getElementById(id);
const state = { info: null, names: [], robots: new Map(), demo: null, shown: null, token: "", clock: 0 };
const drawn = {}; // what the present elements were made from

// ---- talking to the server

class NoEntry extends Error {}

async function call(path, options = {}) {
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  if (options.body !== undefined) {
    headers["Content-Type"] = "application/json";
  }
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.status === 401) {
    throw new NoEntry();
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error || `the server answered ${answer.status}`);
  }
  return answer;
}

const post = (path, fields) => call(path, { method: "POST", body: JSON.stringify(fields) });

async function watch() {
  state.info = await (await call("/page/info")).json();
  state.clock = state.info.now - Date.now() / 1000;
  $("login").hidden = true;
  $("main").hidden = false;
  drawServed();
  const reader = (await call("/page/events")).body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) {
      return;
    }
    rest += decoder.decode(value, { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop();
    lines.forEach((line) => take(JSON.parse(line)));
    draw();
  }
}

async function stay() {
  for (;;) {
    try {
      await watch();
    } catch (error) {
      if (error instanceof NoEntry) {
        askForToken();
        return;
      }
    }
    setReady("not connected", "off");
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

function askForToken() {
  $("login-error").textContent = state.token ? "That is not the token." : "";
  sessionStorage.removeItem("token");
  $("login").hidden = false;
  $("main").hidden = true;
  setReady("token needed", "");
  $("token").focus();
}

function take(message) {
  if (message.server) {
    state.names = message.server.robots;
    const why = message.server.not_ready;
    setReady(why || "ready", why ? "" : "good");
    for (const name of state.robots.keys()) {
      if (!state.names.includes(name) && !(state.demo && name === SIMULATOR)) {
        state.robots.delete(name);
      }
    }
  } else if (message.robot) {
    state.robots.set(message.robot.name, message.robot);
  } else if (message.demo) {
    if (state.demo && state.demo.seed !== message.demo.seed) {
      state.robots.delete(SIMULATOR); // what it did was at another table
    }
    state.demo = message.demo;
  }
}

// ---- drawing

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function image(kind, data, alt) {
  const made = element("img");
  made.src = `data:image/${kind};base64,${data}`;
  made.alt = alt;
  return made;
}

function setReady(text, kind) {
  $("ready").textContent = text;
  $("ready").className = `pill ${kind}`;
}

const short = (digest) => (digest.length > 16 ? digest.slice(0, 12) : digest);

function drawServed() {
  const info = state.info;
  const facts = [
    ["robot", info.action_spec.name],
    ["bundle", short(info.bundle)],
    ["spec", short(info.spec)],
    ["cameras", info.cameras.join(", ")],
    ["rate", `${info.action_spec.control_hz} Hz`],
  ];
  $("served").replaceChildren(
    ...facts.map(([name, value]) => {
      const pair = element("div");
      pair.append(element("dt", "", name), element("dd", "", value));
      return pair;
    }),
  );
}

const title = (name) => (name === SIMULATOR && state.demo ? "Simulator" : name);

function draw() {
  const names = [...state.robots.keys()].sort();
  if (state.demo) {
    names.splice(0, names.length, SIMULATOR, ...names.filter((n) => n !== SIMULATOR));
  }
  if (!names.includes(state.shown)) {
    state.shown = names[0] ?? null;
    $("answer").replaceChildren();
  }
  drawRobots(names);
  $("nobody").hidden = names.length > 0;
  $("focus").hidden = state.shown === null;
  if (state.shown !== null) {
    drawFocus();
  }
}

function drawRobots(names) {
  if (names.length === 1 && state.demo) {
    names = []; // nothing to choose
  }
  const kept = new Map([...$("robots").children].map((child) => [child.dataset.name, child]));
  const now = names.map((name) => {
    const robot = state.robots.get(name);
    let button = kept.get(name);
    if (!button) {
      button = element("button", "robot");
      button.dataset.name = name;
      button.addEventListener("click", () => {
        state.shown = name;
        $("answer").replaceChildren();
        draw();
      });
    }
    button.setAttribute("aria-pressed", String(name === state.shown));
    if (button.robot !== robot || !button.firstChild) {
      button.robot = robot;
      const words = element("div");
      words.append(element("b", "", title(name)), element("span", "", robot ? robot.instruction : ""));
      if (robot) {
        const said = robot.valid ? `${robot.protocol} · ${milliseconds(robot.total_ms)}` : `holds: ${robot.reason}`;
        words.append(element("span", robot.valid ? "" : "holds", said));
      }
      const picture = robot && Object.values(robot.pictures)[0];
      button.replaceChildren(picture ? image("png", picture, "") : element("span", "blank"), words);
    }
    return button;
  });
  const same = now.length === $("robots").children.length && now.every((b, i) => b === $("robots").children[i]);
  if (!same) {
    $("robots").replaceChildren(...now);
  }
}

function drawFocus() {
  const name = state.shown;
  const demo = name === SIMULATOR ? state.demo : null;
  const robot = state.robots.get(name) ?? null;
  $("name").textContent = title(name);
  drawAge();
  $("focus").classList.toggle("simulated", Boolean(demo));
  $("demo").hidden = !demo;
  $("view").hidden = !(demo && demo.view);
  $("outcome").hidden = !demo;
  $("told").textContent = demo ? demo.instruction : robot ? robot.instruction : "";
  const pictures = demo ? demo.pictures : robot ? robot.pictures : {};
  if (drawn.pictures !== pictures) {
    drawn.pictures = pictures;
    drawPictures(pictures, demo);
  }
  if (demo) {
    drawDemo(demo);
  }
  if (drawn.robot !== robot || drawn.name !== name) {
    drawn.robot = robot;
    drawn.name = name;
    drawAction(robot);
  }
}

function drawPictures(pictures, demo) {
  $("cameras").replaceChildren(
    ...Object.entries(pictures).map(([camera, data]) => {
      const figure = element("figure");
      const caption = demo ? "policy's view" : camera;
      figure.append(image("png", data, `camera ${camera}`), element("figcaption", "", caption));
      return figure;
    }),
  );
  const cameras = Object.keys(pictures);
  const chosen = $("camera").value;
  $("camera").hidden = cameras.length < 2;
  $("camera").replaceChildren(...cameras.map((camera) => new Option(camera, camera)));
  if (cameras.includes(chosen)) {
    $("camera").value = chosen;
  }
  $("ask-it").disabled = !cameras.length;
}

function drawDemo(demo) {
  if (demo.view && drawn.view !== demo.view) {
    drawn.view = demo.view;
    $("view").src = `data:image/jpeg;base64,${demo.view}`;
  }
  $("outcome").textContent = demo.message;
  $("outcome").className = demo.status;
  const runs = demo.status === "running";
  const there = Boolean(demo.view);
  $("go").disabled = runs || !there;
  $("stop").disabled = !runs;
  $("set-scene").disabled = $("new-scene").disabled = !there;
  if (drawn.seed !== demo.seed) {
    drawn.seed = demo.seed;
    $("seed").value = demo.seed;
  }
  const examples = demo.examples.join("\n");
  if (drawn.examples !== examples) {
    drawn.examples = examples;
    $("examples").replaceChildren(
      ...demo.examples.map((words) => {
        const button = element("button", "", words);
        button.type = "button";
        button.addEventListener("click", () => {
          $("instruction").value = words;
          $("instruction").focus();
        });
        return button;
      }),
    );
  }
}

function drawAge() {
  const robot = state.robots.get(state.shown);
  const seconds = robot ? Math.max(0, Date.now() / 1000 + state.clock - robot.at) : 0;
  $("age").textContent = !robot ? "" : seconds < 2 ? "live" : `last asked ${Math.round(seconds)} s ago`;
}

const milliseconds = (x) => (x < 10 ? `${x.toFixed(1)} ms` : `${Math.round(x)} ms`);

function drawAction(robot) {
  $("verdict").replaceChildren();
  $("why").hidden = !robot || robot.valid;
  $("why").textContent = robot && !robot.valid ? `Holds its position (${robot.reason}): ${robot.why}` : "";
  if (robot) {
    $("verdict").append(
      robot.valid ? element("span", "pill good", "valid") : element("span", "pill off", "hold"),
      ...robot.clipped.map((limit) => element("span", "pill", `clipped: ${limit}`)),
    );
  }
  drawBars(robot);
  const more = robot ? robot.actions.length - 1 : 0;
  $("chunk").textContent = more > 0 ? `The first of a chunk of ${more + 1} actions.` : "";
  $("plan").textContent = robot ? robot.plan : "";
  $("plan").hidden = $("plan-title").hidden = !(robot && robot.plan);
  const tokens = robot ? robot.text || robot.tokens.join(" ") : "";
  $("tokens").textContent = tokens || (robot && robot.valid ? "a chunk goes on" : "–");
  drawTimes(robot);
}

function drawTimes(robot) {
  const [queue, model, rest] = $("times").children;
  const total = robot ? Math.max(robot.total_ms, 1e-6) : 1;
  const share = (x) => `${Math.max(0, (100 * x) / total)}%`;
  queue.style.width = robot ? share(robot.queue_ms) : "0";
  model.style.width = robot ? share(robot.model_ms) : "0";
  rest.style.width = robot ? share(total - robot.queue_ms - robot.model_ms) : "0";
  $("latency").textContent = robot
    ? `${milliseconds(robot.total_ms)} = queue ${milliseconds(robot.queue_ms)} + model ` +
      `${milliseconds(robot.model_ms)} + other ${milliseconds(Math.max(0, total - robot.queue_ms - robot.model_ms))}` +
      (robot.batch ? ` · batch of ${robot.batch}` : "")
    : "–";
}

// One bar a dimension: the track spans the spec's bounds and what the server's limits leave of them
// is darker; the fill goes from nought to the action.
function drawBars(robot) {
  const info = state.info;
  const rows = info.action_spec.dimensions.map((dimension, i) => {
    const { low, high } = dimension;
    const value = robot ? robot.actions[0][i] : null;
    const place = (x) => `${(100 * (Math.min(Math.max(x, low), high) - low)) / (high - low)}%`;
    const width = (from, to) => `${(100 * Math.abs(to - from)) / (high - low)}%`;
    const row = element("div", "bar");
    row.classList.toggle("holding", Boolean(robot && !robot.valid));
    const track = element("div", "track");
    const allowed = element("i", "allowed");
    allowed.style.left = place(info.low[i]);
    allowed.style.width = width(info.low[i], info.high[i]);
    track.append(allowed);
    const nought = Math.min(Math.max(0, low), high);
    if (nought > low && nought < high) {
      const zero = element("i", "zero");
      zero.style.left = place(nought);
      track.append(zero);
    }
    if (value !== null) {
      const fill = element("i", "fill");
      fill.style.left = place(Math.min(nought, value));
      fill.style.width = width(nought, Math.min(Math.max(value, low), high));
      track.append(fill);
      const near = 1e-4 * (high - low);
      const delta = !["flag", "closedness", "effort"].includes(dimension.unit);
      row.classList.toggle("at-limit", delta && (value >= info.high[i] - near || value <= info.low[i] + near));
    }
    const ends = element("div", "ends");
    ends.append(element("span", "", info.low[i].toPrecision(3) * 1), element("span", "", info.high[i].toPrecision(3) * 1));
    const middle = element("div");
    middle.append(track, ends);
    const unit = dimension.unit === "unknown" ? "" : dimension.unit;
    const number = element("span", "value", value === null ? "–" : value.toFixed(3));
    number.append(" ", element("small", "", unit));
    const label = element("span", "what", dimension.name.replaceAll("_", " "));
    const limits = info.limits[dimension.name];
    label.title = limits ? JSON.stringify(limits) : dimension.name;
    row.append(label, middle, number);
    return row;
  });
  $("bars").replaceChildren(...rows);
}

// ---- what people do

async function attempt(action) {
  $("problem").textContent = "";
  try {
    await action();
  } catch (error) {
    if (error instanceof NoEntry) {
      askForToken();
    } else {
      $("problem").textContent = error.message;
    }
  }
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = $("token").value.trim();
  $("token").value = "";
  sessionStorage.setItem("token", state.token);
  stay();
});

$("demo").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(() => post("/page/demo/go", { instruction: $("instruction").value }));
});

$("stop").addEventListener("click", () => attempt(() => post("/page/demo/stop", {})));

const setScene = (seed) => {
  $("answer").replaceChildren();
  return attempt(() => post("/page/demo/scene", { seed }));
};
$("set-scene").addEventListener("click", () => setScene($("seed").valueAsNumber));
$("new-scene").addEventListener("click", () => setScene(Math.floor(Math.random() * 2 ** 31)));
$("seed").addEventListener("keydown", (event) => {
  if (event.key === "Enter") {
    event.preventDefault();
    setScene($("seed").valueAsNumber);
  }
});

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const picture = drawn.pictures[$("camera").value];
  const question = $("question").value;
  $("ask-it").disabled = true;
  $("answer").textContent = "…";
  try {
    const said = await (await post("/answer", { image: picture, question })).json();
    $("answer").replaceChildren(element("span", "quiet", `${question} `), element("b", "", said.answer || "(nothing)"));
  } catch (error) {
    $("answer").replaceChildren(element("span", "bad", error.message || "a token is needed"));
  }
  $("ask-it").disabled = false;
});

setInterval(drawAge, 1000);
state.token = sessionStorage.getItem("token") ?? "";
stay();
