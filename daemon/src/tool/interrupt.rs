//! Ctrl-C (and SIGTERM, SIGHUP) as a question that long work asks between its steps.
//!
//! The first signal asks to stop at the next safe point. The second ends the process at once, for whom that takes too
//! long: the work must stand a kill at any instant anyway.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

/// Whether somebody wants us to stop; cheap to clone and to ask.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupt {
    requested: Arc<AtomicBool>,
}

impl Interrupt {
    /// From now on signals are only noted. It starts a thread: enter the namespaces before.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub(crate) fn install() -> io::Result<Self> {
        let interrupt = Self::default();
        let flag = Arc::clone(&interrupt.requested);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let [interrupted, terminated, hung_up] = {
            let _inside = runtime.enter();
            [
                SignalKind::interrupt(),
                SignalKind::terminate(),
                SignalKind::hangup(),
            ]
            .map(signal)
        };
        let (mut interrupted, mut terminated, mut hung_up) = (interrupted?, terminated?, hung_up?);
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                loop {
                    // A shell's convention: 128 and the signal's number.
                    let code = tokio::select! {
                        _ = interrupted.recv() => 130,
                        _ = terminated.recv() => 143,
                        _ = hung_up.recv() => 129,
                    };
                    if flag.swap(true, Ordering::Relaxed) {
                        std::process::exit(code);
                    }
                }
            });
        })?;
        Ok(interrupt)
    }

    /// The same as something to ask that crates below know: true means stop.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.requested)
    }

    /// Whether to stop.
    pub(crate) fn requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }
}
