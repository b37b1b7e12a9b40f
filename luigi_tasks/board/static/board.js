// Live pages: a part with `hx-trigger="TOPIC from:body"` is fetched again when its topic changes.
"use strict";

function follow(body) {
  const seen = JSON.parse(body.dataset.versions);
  const source = new EventSource(body.dataset.streams);
  for (const topic of ["snapshot", "rollouts", "releases", "inbox", "pipeline"]) {
    source.addEventListener(topic, (event) => {
      if (seen[topic] === event.data) return;
      seen[topic] = event.data;
      body.dispatchEvent(new CustomEvent(topic));
    });
  }
}

function localTimes(root) {
  for (const one of root.querySelectorAll("time[datetime]")) {
    one.textContent = new Date(one.dateTime).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  }
}

document.addEventListener("DOMContentLoaded", () => {
  localTimes(document);
  document.body.addEventListener("htmx:afterSwap", () => localTimes(document));
  follow(document.body);
});
