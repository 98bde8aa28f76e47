/* The site's search runs in a Worker, which browsers refuse to pages that are opened from a disk.
   There it runs in a hidden frame, which has the same page's rights and the few functions that a Worker has. */
if (location.protocol === "file:") {
  const loaded = (frame, url) =>
    new Promise((resolve, reject) => {
      const script = frame.contentDocument.createElement("script")
      script.src = new URL(url, location.href).href
      script.onload = resolve
      script.onerror = () => reject(new Error(`cannot load ${url}`))
      frame.contentDocument.body.append(script)
    })

  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...urls) => urls.reduce((before, next) => before.then(() => loaded(this.frame, next)), Promise.resolve())
      this.ready = loaded(this.frame, url)
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
