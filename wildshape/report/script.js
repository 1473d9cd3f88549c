// A picture that is clicked opens large; folded tables unfold on paper.
const dialog = document.getElementById("zoom");
document.querySelectorAll("figure.picture img").forEach((image) => {
  image.addEventListener("click", () => {
    dialog.querySelector("img").src = image.src;
    dialog.querySelector("p").textContent = image.alt;
    dialog.showModal();
  });
});
dialog.addEventListener("click", () => dialog.close());
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details.grid").forEach((part) => (part.open = true));
});
