//! A bar for what takes long, where somebody looks.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::files::intake::Step;

/// Bytes going by, on standard error; nothing at all when that is no terminal.
#[derive(Debug)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Nothing done yet.
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let look = "{wide_msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        Self(
            bar.with_style(
                ProgressStyle::with_template(look).unwrap_or_else(|_| ProgressStyle::default_bar()),
            ),
        )
    }

    /// Shows how far it is.
    pub(super) fn step(&self, step: Step<'_>) {
        match step {
            Step::Total(bytes) => self.0.set_length(bytes),
            Step::File(name) => self.0.set_message(super::output::plain(name)),
            Step::Bytes(bytes) => self.0.inc(bytes),
            Step::Check(name) => self.0.set_message(format!("checking {}", super::output::plain(name))),
        }
    }

    /// Takes it away.
    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }
}
