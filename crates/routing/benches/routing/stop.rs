//! Ending early by Ctrl-C or a polite request, with everything removed.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use tokio::signal::unix::{SignalKind, signal};

static STOPPED: AtomicBool = AtomicBool::new(false);

/// From now on such a signal only makes [`check`] fail.
pub(crate) fn watch() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot wait for signals")?;
    let signals = runtime.block_on(async {
        let interrupt = signal(SignalKind::interrupt())?;
        Ok::<_, std::io::Error>((interrupt, signal(SignalKind::terminate())?))
    });
    let (mut interrupt, mut terminate) = signals?;
    // It ends with the process.
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            STOPPED.store(true, Ordering::Relaxed);
        })?;
    Ok(())
}

/// Fails once the run is to end.
pub(crate) fn check() -> anyhow::Result<()> {
    ensure!(!STOPPED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}
