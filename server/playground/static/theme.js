/** Light or dark: the system's choice until the reader makes another, which is remembered. */

const KEY = "logit-fusion-theme";

export function setUpTheme(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  };
  try {
    const remembered = localStorage.getItem(KEY);
    if (remembered) root.dataset.theme = remembered;
  } catch {
    // Storage may be switched off; the system's choice stays.
  }
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem(KEY, root.dataset.theme);
    } catch {
      // As above: it holds until the page is left.
    }
    show();
  });
  system.addEventListener("change", show);
  show();
}
