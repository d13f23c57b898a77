//! What is going on while a command works: a moving line on a terminal, plain
//! lines elsewhere. On standard error, so that standard output stays clean.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    last: String,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>3} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self {
            bar,
            started: Instant::now(),
            last: String::new(),
        }
    }

    /// A step was reached.
    pub(crate) fn step(&mut self, text: &str) {
        if text == self.last {
            return;
        }
        text.clone_into(&mut self.last);
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => self.line(text),
        }
    }

    /// Something changed within a step: shown where it costs no line.
    pub(crate) fn detail(&self, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text);
        }
    }

    /// The last word.
    pub(crate) fn finish(&mut self, text: &str) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if !text.is_empty() {
            self.line(text);
        }
    }

    fn line(&self, text: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        // Nobody listens: nothing to be done about it.
        let _ = writeln!(std::io::stderr(), "{seconds:6.2}s  {text}");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
