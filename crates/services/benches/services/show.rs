//! Figures as people read them.

use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

/// How long many rounds of the same took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) median: Duration,
    /// 99 of 100 took no longer.
    pub(crate) most: Duration,
}

impl Times {
    /// Of at least one.
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self {
            median: times[times.len() / 2],
            most: times[(times.len() * 99 / 100).min(times.len() - 1)],
        }
    }
}

pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(UTF8_FULL_CONDENSED)
        .set_header(header.iter().copied());
    table
}

pub(crate) fn right(text: impl ToString) -> Cell {
    Cell::new(text.to_string()).set_alignment(CellAlignment::Right)
}

/// Milliseconds.
pub(crate) fn ms(time: Duration) -> Cell {
    let ms = time.as_secs_f64() * 1e3;
    let digits = if ms < 10.0 { 1 } else { 0 };
    right(format!("{ms:.digits$} ms"))
}

/// Microseconds.
pub(crate) fn us(time: Duration) -> Cell {
    right(format!("{:.1} µs", time.as_secs_f64() * 1e6))
}

/// How many times one is the other, with as many digits as say something.
pub(crate) fn times(one: Duration, other: Duration) -> Cell {
    let ratio = one.as_secs_f64() / other.as_secs_f64().max(1e-9);
    let digits = if ratio < 10.0 { 2 } else { 0 };
    right(format!("{ratio:.digits$}"))
}

/// The median of at least one.
pub(crate) fn median(of: impl IntoIterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = of.into_iter().collect();
    all.sort_unstable_by(f64::total_cmp);
    all[all.len() / 2]
}

/// The median of at least one ratio, and the middle half of them.
pub(crate) fn spread(mut ratios: Vec<f64>) -> Cell {
    ratios.sort_unstable_by(f64::total_cmp);
    let at = |quarter: usize| ratios[(ratios.len() - 1) * quarter / 4];
    right(format!("{:.2} ({:.2}–{:.2})", at(2), at(1), at(3)))
}
