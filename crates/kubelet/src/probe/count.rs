//! What a row of answers means: thresholds turn answers into a verdict.

/// What the latest answer changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As many successes in a row as it takes; reported when it begins.
    Succeeded,
    /// As many failures in a row as it takes; reported when it begins.
    Failed,
    /// Nothing new.
    Unchanged,
}

/// Counts equal answers in a row.
#[derive(Debug, Clone)]
pub(super) struct Count {
    success: u32,
    failure: u32,
    last: Option<bool>,
    row: u32,
    verdict: Option<bool>,
}

impl Count {
    /// With the probe's thresholds; 1 and 3 when absent.
    pub(super) fn new(success: Option<i32>, failure: Option<i32>) -> Self {
        let threshold = |value: Option<i32>, default: u32| {
            value
                .and_then(|value| u32::try_from(value).ok())
                .filter(|value| *value > 0)
                .unwrap_or(default)
        };
        Self {
            success: threshold(success, 1),
            failure: threshold(failure, 3),
            last: None,
            row: 0,
            verdict: None,
        }
    }

    pub(super) fn answered(&mut self, good: bool) -> Verdict {
        self.row = if self.last == Some(good) {
            self.row.saturating_add(1)
        } else {
            1
        };
        self.last = Some(good);
        let needed = if good { self.success } else { self.failure };
        if self.row < needed || self.verdict == Some(good) {
            return Verdict::Unchanged;
        }
        self.verdict = Some(good);
        if good {
            Verdict::Succeeded
        } else {
            Verdict::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// Each letter is an answer and the verdict that must follow: `.` none,
    /// `S` success, `F` failure.
    #[rstest]
    #[case::first_success_counts("+", "S", None, None)]
    #[case::three_failures_in_a_row("---", "..F", None, None)]
    #[case::a_success_between_starts_anew("--+---", "..S..F", None, None)]
    #[case::success_threshold("++-++", ".S...", Some(2), None)]
    #[case::back_after_failure("+-+", "SFS", None, Some(1))]
    #[case::a_verdict_is_told_once("+++", "S..", None, None)]
    fn thresholds_turn_answers_into_verdicts(
        #[case] answers: &str,
        #[case] verdicts: &str,
        #[case] success: Option<i32>,
        #[case] failure: Option<i32>,
    ) {
        let mut count = Count::new(success, failure);
        let got: String = answers
            .chars()
            .map(|answer| match count.answered(answer == '+') {
                Verdict::Succeeded => 'S',
                Verdict::Failed => 'F',
                Verdict::Unchanged => '.',
            })
            .collect();
        assert_eq!(got, verdicts);
    }
}
