//! What the test binary said.

use std::fmt;

use crate::Error;

/// Where the cases ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the running kernel, which has all that is needed.
    Here,
    /// In the virtual machine.
    Guest,
}

/// How one case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It held.
    Passed,
    /// It panicked, or nothing was heard of its end.
    Failed,
}

/// One test of the binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Its full name, with modules.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// All cases of one run. Its `Display` is a line for each case.
#[derive(Debug, Clone)]
pub struct Report {
    /// Where they ran.
    pub place: Place,
    /// The cases, in the order they ran.
    pub cases: Vec<Case>,
    /// What the test binary wrote and, of a guest, its kernel.
    pub output: String,
}

impl Report {
    /// Reads the output of a test binary that ran with one thread. `code` is
    /// its exit code. Anything but success of at least one case is an error.
    pub(crate) fn read(
        place: Place,
        filter: &str,
        code: i32,
        output: String,
    ) -> Result<Self, Error> {
        let cases = cases(&output);
        let failed: Vec<&str> = cases
            .iter()
            .filter(|case| case.outcome == Outcome::Failed)
            .map(|case| case.name.as_str())
            .collect();
        if code != 0 || !failed.is_empty() {
            let failed = match &failed[..] {
                [] => "the test binary failed".to_owned(),
                names => format!(
                    "{} of {} failed: {}",
                    names.len(),
                    cases.len(),
                    names.join(", ")
                ),
            };
            return Err(Error::Failed {
                failed,
                code,
                output,
            });
        }
        if cases.is_empty() {
            return Err(Error::NoCases {
                filter: filter.to_owned(),
                output,
            });
        }
        Ok(Self {
            place,
            cases,
            output,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.place {
            Place::Here => "on this kernel",
            Place::Guest => "in the virtual machine",
        };
        writeln!(formatter, "{} cases {place}:", self.cases.len())?;
        for case in &self.cases {
            let outcome = match case.outcome {
                Outcome::Passed => "ok",
                Outcome::Failed => "FAILED",
            };
            writeln!(formatter, "  {outcome} {}", case.name)?;
        }
        Ok(())
    }
}

/// The cases in the output of libtest: `test NAME ... ` and then `ok` or
/// `FAILED` at the end of that line or, where something else wrote to the
/// console meanwhile, of a later one. A case without an end has failed.
fn cases(output: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut open = false;
    for line in output.lines() {
        let mut rest = line.trim_end_matches('\r');
        if let Some((name, after)) = started(rest) {
            cases.push(Case {
                name: name.to_owned(),
                outcome: Outcome::Failed,
            });
            open = true;
            rest = after;
        }
        if open && (rest.ends_with("ok") || rest.ends_with("FAILED")) {
            if let (Some(case), true) = (cases.last_mut(), rest.ends_with("ok")) {
                case.outcome = Outcome::Passed;
            }
            open = false;
        }
        // The summary repeats no case.
        if rest.starts_with("test result: ") || rest == "failures:" {
            break;
        }
    }
    cases
}

/// The name in `test NAME ... REST`, which a kernel's message may precede.
/// `- should panic` is part of what libtest prints and not of the name.
fn started(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.split_once("test ")?;
    let (name, rest) = rest.split_once(" ... ")?;
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    (!name.contains(' ')).then_some((name, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "\r
running 4 tests\r
test guest::a ... ok\r
test guest::b - should panic ... [    3.1] device eth0 left\r
ok\r
[    3.2] something test guest::c ... FAILED\r
test guest::d ... \r
\r
failures:\r
---- guest::c stdout ----\r
test guest::z ... ok\r
";

    #[test]
    fn every_case_is_read_even_when_the_kernel_speaks_in_between() {
        let found: Vec<_> = cases(MIXED)
            .into_iter()
            .map(|case| (case.name, case.outcome))
            .collect();
        assert_eq!(
            found,
            [
                ("guest::a".to_owned(), Outcome::Passed),
                ("guest::b".to_owned(), Outcome::Passed),
                ("guest::c".to_owned(), Outcome::Failed),
                ("guest::d".to_owned(), Outcome::Failed),
            ]
        );
    }

    #[test]
    fn nothing_run_is_no_success() {
        let error = Report::read(Place::Guest, "nope", 0, "running 0 tests\n".into()).unwrap_err();
        assert!(matches!(error, Error::NoCases { .. }), "{error}");
        let error = Report::read(Place::Guest, "a", 101, "test a ... ok\n".into()).unwrap_err();
        assert!(matches!(error, Error::Failed { .. }), "{error}");
    }
}
