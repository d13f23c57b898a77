//! The programs of iptables: which there are, which to use, and running them.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use linux::namespace::{self, NetworkNamespace};

use crate::model::Family;

/// How long `iptables-restore` waits for another program's lock, in seconds.
const LOCK: u32 = 30;

/// Chains by which the kubelet or another kube-proxy shows which variant a
/// node's programs use (`KEP-3178`).
const HINTS: [&str; 2] = [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "];

/// Why iptables could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The programs are not there.
    #[error(
        "the iptables proxy needs {0}, which is in no directory of PATH; install iptables, or choose another proxy"
    )]
    Missing(String),
    /// A program could not be run.
    #[error("running {}: {source}", .program.display())]
    Run {
        /// Which.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The network namespace could not be entered.
    #[error("entering the network namespace for iptables: {0}")]
    Namespace(#[from] namespace::Error),
    /// A program refused.
    #[error("{} failed: {message}", .program.display())]
    Failed {
        /// Which.
        program: PathBuf,
        /// What it printed, with the line of its input that it names.
        message: String,
    },
}

/// The two kinds of iptables there are. Their rules know nothing of each other;
/// a packet meets both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The kernel's `ip_tables`.
    Legacy,
    /// Rules of nf_tables, through the kernel's `nft_compat`.
    Nft,
}

impl Variant {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// As the programs' names have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a variant was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The user said so.
    Asked,
    /// The other is not installed.
    Only,
    /// A chain says that the node's other programs use it.
    Hint,
    /// It has more rules of others than the other variant.
    MoreRules {
        /// How many.
        here: usize,
        /// How many the other has.
        there: usize,
    },
    /// Nothing speaks for either: nf_tables is what iptables is heading for.
    Default,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("it was asked for"),
            Self::Only => f.write_str("the other variant is not installed"),
            Self::Hint => f.write_str("a chain KUBE-IPTABLES-HINT or KUBE-KUBELET-CANARY is there"),
            Self::MoreRules { here, there } => write!(
                f,
                "others keep {here} rules there and {there} in the other variant"
            ),
            Self::Default => f.write_str("nothing speaks for the other"),
        }
    }
}

/// The programs of one variant, for one network namespace.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Which.
    pub variant: Variant,
    namespace: NetworkNamespace,
    /// `restore` and `save` of IPv4, then of IPv6.
    paths: [[PathBuf; 2]; 2],
}

impl Programs {
    /// Looks for a variant's programs: by their own names, or by the plain
    /// names if those turn out to be of this variant. They will be run in the
    /// calling thread's network namespace, from wherever they are asked for.
    ///
    /// # Errors
    /// If one is missing; it is named.
    pub fn find(variant: Variant, path: &OsStr) -> Result<Self, Error> {
        let find = |program: &str, action: &str| {
            let named = format!("{program}-{variant}-{action}");
            let plain = format!("{program}-{action}");
            search(&named, path)
                .or_else(|| search(&plain, path).filter(|found| is_of(found, variant)))
                .ok_or(Error::Missing(named))
        };
        let family =
            |program: &str| Ok::<_, Error>([find(program, "restore")?, find(program, "save")?]);
        Ok(Self {
            variant,
            namespace: NetworkNamespace::current()?,
            paths: [family("iptables")?, family("ip6tables")?],
        })
    }

    const fn of(&self, family: Family) -> &[PathBuf; 2] {
        match family {
            Family::V4 => &self.paths[0],
            Family::V6 => &self.paths[1],
        }
    }

    /// What the kernel holds.
    ///
    /// # Errors
    /// If the program cannot be run or fails.
    pub fn save(&self, family: Family, counters: bool) -> Result<String, Error> {
        let program = &self.of(family)[1];
        let arguments: &[&str] = if counters { &["-c"] } else { &[] };
        self.namespace.run(|| run(program, arguments, ""))?
    }

    /// Changes what the kernel holds, as `text` says.
    ///
    /// # Errors
    /// If the program cannot be run or refuses the text; each table of it is
    /// then either changed whole or not at all.
    pub fn restore(&self, family: Family, text: &str) -> Result<(), Error> {
        let wait = format!("--wait={LOCK}");
        let program = &self.of(family)[0];
        self.namespace
            .run(|| run(program, &["--noflush", &wait], text))?
            .map(drop)
    }
}

/// Chooses a variant: the one asked for, or the only one, or the one that the
/// node's other programs use.
///
/// # Errors
/// If the one asked for, or both, are not installed.
pub fn choose(asked: Option<Variant>, path: &OsStr) -> Result<(Programs, Reason), Error> {
    if let Some(variant) = asked {
        return Ok((Programs::find(variant, path)?, Reason::Asked));
    }
    let (nft, legacy) = match Variant::ALL.map(|variant| Programs::find(variant, path)) {
        [Ok(nft), Ok(legacy)] => (nft, legacy),
        [Ok(only), Err(_)] | [Err(_), Ok(only)] => return Ok((only, Reason::Only)),
        [Err(_), Err(_)] => return Err(Error::Missing("iptables-restore".to_owned())),
    };
    let (in_nft, in_legacy) = (Traces::of(&nft), Traces::of(&legacy));
    Ok(match decide(in_nft, in_legacy) {
        (Variant::Nft, reason) => (nft, reason),
        (Variant::Legacy, reason) => (legacy, reason),
    })
}

/// What others have in a variant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Traces {
    hint: bool,
    rules: usize,
}

impl Traces {
    /// A variant that cannot be listed has none: its kernel side is missing.
    fn of(programs: &Programs) -> Self {
        let mut traces = Self::default();
        for family in Family::ALL {
            if let Ok(text) = programs.save(family, false) {
                traces.take(&text);
            }
        }
        traces
    }

    fn take(&mut self, saved: &str) {
        for line in saved.lines() {
            self.hint |= HINTS.iter().any(|hint| line.starts_with(hint));
            self.rules +=
                usize::from(line.starts_with("-A ") && !line.contains(super::compile::PREFIX));
        }
    }
}

fn decide(nft: Traces, legacy: Traces) -> (Variant, Reason) {
    match (nft.hint, legacy.hint) {
        (true, false) => return (Variant::Nft, Reason::Hint),
        (false, true) => return (Variant::Legacy, Reason::Hint),
        _ => {}
    }
    let more = |here: Traces, there: Traces| Reason::MoreRules {
        here: here.rules,
        there: there.rules,
    };
    match nft.rules.cmp(&legacy.rules) {
        std::cmp::Ordering::Greater => (Variant::Nft, more(nft, legacy)),
        std::cmp::Ordering::Less => (Variant::Legacy, more(legacy, nft)),
        std::cmp::Ordering::Equal => (Variant::Nft, Reason::Default),
    }
}

fn search(program: &str, path: &OsStr) -> Option<PathBuf> {
    // Where Debian and others install it, which a service's PATH may lack.
    std::env::split_paths(path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Whether a program says that it is of a variant.
fn is_of(program: &Path, variant: Variant) -> bool {
    let said = match run(program, &["--version"], "") {
        Ok(said) => said,
        Err(_) => return false,
    };
    match variant {
        Variant::Nft => said.contains("nf_tables"),
        // Old programs say nothing.
        Variant::Legacy => !said.contains("nf_tables"),
    }
}

/// Runs a program to its end.
fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, Error> {
    let failed = |source| Error::Run {
        program: program.to_owned(),
        source,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        // Beside reading, so that neither side waits for the other. A program
        // that stops reading has failed, and says why.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
        child.wait_with_output()
    })
    .map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Failed {
        program: program.to_owned(),
        message: explain(&said, input),
    })
}

/// What a program said, with the line of its input that it names.
fn explain(said: &str, input: &str) -> String {
    let mut message = said.trim().replace('\n', "; ");
    let number = said
        .split("line")
        .skip(1)
        .filter_map(|rest| {
            let digits = rest.trim_start_matches([':', ' ']);
            let end = digits
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(digits.len());
            digits[..end].parse::<usize>().ok()
        })
        .next();
    if let Some(line) = number.and_then(|n| input.lines().nth(n.checked_sub(1)?)) {
        message.push_str(&format!("; the line is: {line}"));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traces(saved: &str) -> Traces {
        let mut traces = Traces::default();
        traces.take(saved);
        traces
    }

    #[test]
    fn the_variant_of_the_nodes_other_programs_is_used() {
        let none = traces("");
        let rules = traces("*filter\n-A INPUT -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n");
        let hint = traces("*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n");
        let ours = traces("*nat\n-A PREROUTING -j PODWIRE-SERVICES\nCOMMIT\n");
        assert_eq!(decide(none, none), (Variant::Nft, Reason::Default));
        assert_eq!(decide(none, ours), (Variant::Nft, Reason::Default));
        assert_eq!(
            decide(none, rules),
            (Variant::Legacy, Reason::MoreRules { here: 2, there: 0 })
        );
        assert_eq!(
            decide(rules, none),
            (Variant::Nft, Reason::MoreRules { here: 2, there: 0 })
        );
        assert_eq!(decide(rules, hint), (Variant::Legacy, Reason::Hint));
        assert_eq!(decide(hint, rules), (Variant::Nft, Reason::Hint));
    }

    #[test]
    fn a_missing_program_is_named_with_the_remedy() {
        let error = Error::Missing("iptables-legacy-restore".to_owned());
        assert!(error.to_string().contains("install iptables"), "{error}");
    }

    #[test]
    fn the_line_a_program_refused_is_shown() {
        let input = "*nat\n-A NOWHERE -j NOTHING\nCOMMIT\n";
        for said in [
            "iptables-restore v1.8.9 (legacy): Couldn't load target\nError occurred at line: 2\nTry help",
            "iptables-nft-restore: line 2 failed: No chain/target/match by that name.\n",
        ] {
            assert!(
                explain(said, input).ends_with("the line is: -A NOWHERE -j NOTHING"),
                "{}",
                explain(said, input)
            );
        }
    }
}
