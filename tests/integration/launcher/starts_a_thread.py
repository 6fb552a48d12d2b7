"""A module to preload that starts a thread, which it should not."""

import threading

threading.Thread(target=threading.Event().wait, name="a-careless-thread", daemon=True).start()
