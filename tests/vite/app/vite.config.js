export default {
    // A new one in each run.
    cacheDir: ".vite",
    // The name by which the browser knows the proxy; Vite refuses those that it was not told.
    server: { allowedHosts: ["app.example"] },
};
