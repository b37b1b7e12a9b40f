// The page Try: pictures that are dropped, pasted, chosen or taken are sent one after the other; each gets a card.
// A preview comes from the file itself (a blob URL), never from the board. Without this script the form works alone.
"use strict";

(() => {
  const CARDS = 50, RETRIES = 5;
  const form = document.getElementById("try");

  // The page as it is now; null: the board does not answer.
  async function fresh() {
    const answer = await fetch(location.pathname, { headers: { "Accept": "text/html" } }).catch(() => null);
    return answer?.ok ? new DOMParser().parseFromString(await answer.text(), "text/html") : null;
  }

  if (!form) { // there is no release yet, and nothing on the page to lose
    document.addEventListener("DOMContentLoaded", () =>
      document.body.addEventListener("releases", async () => (await fresh())?.getElementById("try") && location.reload()));
    return;
  }
  const answers = document.getElementById("answers"), said = document.getElementById("said");
  const queue = [];
  let isSending = false, last = null;

  // A file's name as text: what cannot be seen, or turns the line round, is left out.
  const nameOf = (file) => file.name.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "").slice(0, 80);

  // A card for a file; its picture stays when the answer takes its place.
  function card(file) {
    const article = document.createElement("article");
    article.className = "card trial is-waiting";
    const figure = document.createElement("figure"), image = document.createElement("img");
    figure.className = "sent";
    image.alt = "The picture that was sent";
    image.addEventListener("error", () => image.remove()); // a format that this browser does not show
    image.src = URL.createObjectURL(file);
    const name = document.createElement("figcaption");
    name.className = "muted name";
    name.textContent = nameOf(file);
    figure.append(image, name);
    const text = document.createElement("div");
    text.className = "answers";
    text.textContent = "Asking…";
    article.append(figure, text);
    answers.prepend(article);
    while (answers.children.length > CARDS) forget(answers.lastElementChild);
    return article;
  }

  function forget(article) {
    const image = article.querySelector(".sent img");
    if (image?.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
    article.remove();
  }

  function fail(article, words) {
    article.querySelector(".answers").replaceChildren(board.noticeOf("bad", words));
    article.classList.remove("is-waiting");
    said.textContent = words;
  }

  function tell(words) {
    const article = document.createElement("article"), text = document.createElement("div");
    article.className = "card trial is-words";
    text.className = "answers";
    article.append(text);
    answers.prepend(article);
    fail(article, words);
  }

  // Put what the board answered in the place of a card.
  function show(article, file, release, html) {
    const page = new DOMParser().parseFromString(html, "text/html");
    const found = page.querySelector("article.trial");
    if (!found) {
      fail(article, board.reasonIn(html) || "The board gave no answer; try again.");
      return;
    }
    const caption = found.querySelector(".sent figcaption"), image = article.querySelector(".sent img");
    const small = found.querySelector(".sent img"); // what the board made of a format that this browser does not show
    if (image && small) {
      small.replaceWith(image);
      image.addEventListener("error", () => caption.before(small));
    } else if (image) {
      caption.before(image);
    }
    if (!caption.querySelector(".name")) {
      const name = document.createElement("span");
      name.className = "name";
      name.textContent = nameOf(file);
      caption.prepend(name, " ");
    }
    article.replaceWith(found);
    found.querySelector(".send button")?.addEventListener("click", () => keep(found, file, release));
    said.textContent = found.dataset.said || found.querySelector(".notice")?.textContent || "";
  }

  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

  // To be labelled: the same file is sent once more, since the board did not keep it.
  async function keep(article, file, release) {
    const place = article.querySelector(".send"), button = place.querySelector("button");
    button.disabled = true;
    try {
      const answer = JSON.parse(await send(file, `${form.action}/inbox`, { release }, "application/json"));
      if (answer.error) throw new Error(answer.error);
      const link = document.createElement("a");
      link.href = form.dataset.label;
      link.textContent = "In the inbox, to be labelled";
      place.replaceChildren(link);
      said.textContent = link.textContent;
    } catch (error) {
      button.disabled = false;
      said.textContent = place.title = `Not sent: ${error.message}`;
      button.textContent = said.textContent;
    }
  }

  async function send(file, action, fields, accept = "text/html") {
    const address = new URL(action);
    for (const [name, value] of Object.entries(fields)) address.searchParams.set(name, value);
    for (let again = 0; ; again += 1) {
      const answer = await fetch(address, {
        method: "POST",
        body: file,
        headers: {
          "Accept": accept, "HX-Request": "true", "Content-Type": "application/octet-stream",
          "X-Board-Csrf": document.body.dataset.csrf,
        },
      });
      const waitS = Number(answer.headers.get("Retry-After"));
      if (!waitS || again >= RETRIES) return answer.text();
      await sleep(1000 * waitS);
    }
  }

  async function work() {
    if (isSending) return;
    isSending = true;
    for (let next = queue.shift(); next; next = queue.shift()) {
      const { file, article } = next;
      if (!article.isConnected) continue;
      if (file.size > Number(form.dataset.limitBytes)) {
        fail(article, `${file.size.toLocaleString()} bytes; a device reads pictures of up to ` +
          `${Number(form.dataset.limitBytes).toLocaleString()} bytes: scale it down, or save it as a JPEG.`);
        continue;
      }
      try {
        await file.slice(0, 1).arrayBuffer(); // a folder, or a file that is gone
      } catch {
        fail(article, "This cannot be read: a folder, or a file that is gone. Give the pictures themselves.");
        continue;
      }
      try {
        const release = form.elements.release.value;
        show(article, file, release, await send(file, form.action, { beside: form.elements.beside.value, release }));
        last = file;
      } catch {
        fail(article, "The board does not answer; try again.");
      }
    }
    isSending = false;
  }

  function ask(files) {
    for (const file of [...files].slice(0, CARDS)) queue.push({ file, article: card(file) });
    work();
  }

  // Where pictures come from.
  form.classList.add("is-live");
  for (const field of form.querySelectorAll("input[type=file]")) {
    field.addEventListener("change", () => {
      ask(field.files);
      field.value = ""; // the same picture may be chosen again
    });
  }
  form.addEventListener("submit", (event) => event.preventDefault());

  const hasFiles = (data) => data && [...data.types].includes("Files");
  let depth = 0;
  const over = (by) => {
    depth = by ? depth + by : 0;
    form.classList.toggle("is-over", depth > 0);
  };
  addEventListener("dragenter", (event) => hasFiles(event.dataTransfer) && over(1));
  addEventListener("dragleave", (event) => hasFiles(event.dataTransfer) && over(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(0);
    if (event.dataTransfer.files.length) ask(event.dataTransfer.files);
    else tell("That was no file but a link or text: save the picture first, or copy the picture itself and paste it.");
  });
  addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return;
    event.preventDefault();
    ask(event.clipboardData.files);
  });

  // Another release: the last picture is asked again.
  for (const name of ["release", "beside"]) {
    form.elements[name].addEventListener("change", () => last && ask([last]));
  }

  // What can be chosen changed: the choice stays, if there still is such a release.
  async function renew() {
    const page = await fresh();
    if (!page) return;
    for (const name of ["release", "beside"]) {
      const field = form.elements[name], found = page.querySelector(`#try [name=${name}]`), value = field.value;
      if (!found || field === document.activeElement) continue;
      field.replaceChildren(...found.children);
      field.value = value;
      if (field.selectedIndex < 0) field.selectedIndex = 0;
    }
  }
  for (const topic of ["releases", "rollouts"]) document.body.addEventListener(topic, renew);

  // A laptop's camera; phones have a button of their own.
  const webcam = document.getElementById("webcam"), finder = document.getElementById("viewfinder");
  const video = finder.querySelector("video");
  webcam.hidden = !navigator.mediaDevices?.getUserMedia || matchMedia("(pointer: coarse), (max-width: 40rem)").matches;
  webcam.addEventListener("click", async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 } } });
      finder.showModal();
      await video.play();
    } catch (error) {
      finder.close();
      webcam.textContent = error.name === "NotAllowedError" ? "The camera was not allowed" : "No camera was found";
    }
  });
  finder.addEventListener("close", () => video.srcObject?.getTracks().forEach((one) => one.stop()));
  document.getElementById("no-shot").addEventListener("click", () => finder.close());
  document.getElementById("shoot").addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    finder.close();
    canvas.toBlob((blob) => blob && ask([new File([blob], "camera.png", { type: "image/png" })]), "image/png");
  });
})();
