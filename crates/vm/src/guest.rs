//! Describing a guest and running cases in it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::image::{Image, OWN, SEARCH_PATH};
use crate::kernel::{Kernel, Module};
use crate::machine::Clock;
use crate::report::{Place, Report};
use crate::{Error, Feature, machine};

/// Set in a guest: a test there boots no further one.
const MARK: &str = "PODWIRE_GUEST";
/// Well above the ten seconds or so of a boot: other tests may keep all cores busy.
const LIMIT: Duration = Duration::from_secs(240);
/// Memory of the guest in MiB, besides room for its image.
const MEMORY: u64 = 384;

/// What every guest can do: the parts of the network that each kernel has
/// that podwire supports.
const MODULES: &[&str] = &[
    "veth",
    "bridge",
    "br_netfilter",
    "vxlan",
    "macvlan",
    "ifb",
    "tun",
    "overlay",
    "sch_tbf",
    "sch_ingress",
    "cls_u32",
    "cls_matchall",
    "act_mirred",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "nft_ct",
    "nft_fib_inet",
    "nft_hash",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_redir",
    "nft_reject_inet",
    "ip_tables",
    "ip6_tables",
    "iptable_filter",
    "iptable_nat",
    "iptable_mangle",
    "ip6table_filter",
    "ip6table_nat",
    "ip6table_mangle",
    "ip_set",
    "ip_set_hash_ip",
    "ip_set_hash_ipport",
    "ip_set_hash_ipportip",
    "ip_set_hash_ipportnet",
    "ip_set_bitmap_port",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_ipvs",
    "xt_mark",
    "xt_MASQUERADE",
    "xt_multiport",
    "xt_nat",
    "xt_recent",
    "xt_set",
    "xt_statistic",
    "xt_tcpudp",
    "xt_TCPMSS",
    "ipt_REJECT",
    "ip6t_REJECT",
    "sctp",
];

/// Whether this process runs in a guest.
pub fn in_guest() -> bool {
    std::env::var_os(MARK).is_some()
}

/// A guest to be: what its cases need.
#[derive(Debug, Clone)]
pub struct Guest {
    features: BTreeSet<Feature>,
    modules: BTreeSet<String>,
    without: BTreeSet<String>,
    programs: Vec<PathBuf>,
    files: Vec<PathBuf>,
    environment: Vec<(String, String)>,
    memory: u64,
    clock: Clock,
    limit: Duration,
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

impl Guest {
    /// A guest with bash, busybox, `ip`, `nft` and `ping`.
    pub fn new() -> Self {
        Self {
            features: BTreeSet::new(),
            modules: MODULES.iter().map(|&module| module.to_owned()).collect(),
            without: BTreeSet::new(),
            programs: ["bash", "ip", "nft", "ping"].map(PathBuf::from).to_vec(),
            files: Vec::new(),
            environment: Vec::new(),
            memory: MEMORY,
            clock: Clock::Time,
            limit: LIMIT,
        }
    }

    /// The cases need this of the kernel.
    #[must_use]
    pub fn needs(mut self, feature: Feature) -> Self {
        self.features.insert(feature);
        self
    }

    /// Loads one more module in the guest, with those it depends on.
    #[must_use]
    pub fn module(mut self, name: &str) -> Self {
        self.modules.insert(name.replace('-', "_"));
        self
    }

    /// Leaves out a module, and every module that depends on it: a kernel that
    /// lacks it.
    #[must_use]
    pub fn without_module(mut self, name: &str) -> Self {
        self.without.insert(name.replace('-', "_"));
        self
    }

    /// Brings a program: one of the search path by its name, found by name in
    /// the guest too, or any by its absolute path, where it then stands.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.programs.push(program.into());
        self
    }

    /// Brings a file, or a directory with all below it, at the same path.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(path.into());
        self
    }

    /// Sets an environment variable of the cases.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Gives the guest this many MiB of memory besides room for its files
    /// instead of 384.
    #[must_use]
    pub fn memory(mut self, mib: u64) -> Self {
        self.memory = mib;
        self
    }

    /// Has the guest's clock count instructions (125 million are a second), so that
    /// times measured there compare numbers of instructions, whatever else the
    /// machine does meanwhile.
    #[must_use]
    pub fn counts_instructions(mut self) -> Self {
        self.clock = Clock::Instructions;
        self
    }

    /// Kills the guest after so long instead of 240 s.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs the ignored tests of the calling test binary that have `filter` in
    /// their full names, one after the other: here if the kernel has all that
    /// is needed, else in a virtual machine. Fails unless all pass and there
    /// is at least one.
    pub fn run_cases(&self, filter: &str) -> Result<Report, Error> {
        let lacking = self.lacking();
        if lacking.is_empty() {
            self.run_here(filter)
        } else {
            self.run_in_machine(filter, &lacking)
        }
    }

    /// Like [`Self::run_cases`], in a virtual machine whatever the kernel has:
    /// for cases that need a kernel which lacks something.
    pub fn run_cases_in_machine(&self, filter: &str) -> Result<Report, Error> {
        self.run_in_machine(filter, "nothing, but the test asks for the guest's kernel")
    }

    /// Runs lines for bash in a virtual machine: gives their exit code and what
    /// was written to the console.
    pub fn run_script(&self, script: &str) -> Result<(i32, String), Error> {
        self.boot(Image::new()?, script, "what a script needs")
    }

    /// The features the running kernel lacks, in words.
    fn lacking(&self) -> String {
        self.features
            .iter()
            .filter(|feature| !feature.is_here())
            .map(Feature::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    }

    fn run_here(&self, filter: &str) -> Result<Report, Error> {
        let output = Command::new(test_binary()?)
            .args(arguments(filter))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .output()
            .map_err(Error::io("start the test binary again"))?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        // No code: a signal ended it.
        Report::read(
            Place::Here,
            filter,
            output.status.code().unwrap_or(-1),
            text,
        )
    }

    fn run_in_machine(&self, filter: &str, lacking: &str) -> Result<Report, Error> {
        let mut image = Image::new()?;
        let test = format!("{OWN}/test");
        image.stripped(&test_binary()?, &test)?;
        let mut work = format!("ip link set lo up\nexec {test}");
        for argument in arguments(filter) {
            work.push(' ');
            work.push_str(&quoted(argument));
        }
        let (code, output) = self.boot(image, &work, lacking)?;
        Report::read(Place::Guest, filter, code, output)
    }

    /// Completes `image`, boots it and runs `work`, lines for bash.
    fn boot(&self, mut image: Image, work: &str, lacking: &str) -> Result<(i32, String), Error> {
        if in_guest() {
            return Err(Error::Nested(lacking.to_owned()));
        }
        let directory = Kernel::directory();
        let kernel = Kernel::find(&directory)?.ok_or_else(|| Error::NoKernel {
            directory,
            lacking: lacking.to_owned(),
        })?;
        for program in &self.programs {
            image.program(program)?;
        }
        for file in &self.files {
            image.tree(file)?;
        }
        let mut script = format!("export PATH={SEARCH_PATH} HOME=/root {MARK}=1\n");
        for (name, value) in &self.environment {
            script.push_str(&format!("export {name}={}\n", quoted(value)));
        }
        script.push_str(work);
        script.push('\n');
        let bytes = image.boot(&self.load_order(&kernel)?, &script);

        let file = tempfile::NamedTempFile::new().map_err(Error::io("make a file"))?;
        std::fs::write(file.path(), &bytes).map_err(Error::io("write the guest's image"))?;
        // The archive and what is unpacked of it are there at the same time.
        let mebibytes = u64::try_from(bytes.len() >> 20).unwrap_or(u64::MAX);
        let memory = self.memory + 2 * mebibytes;
        machine::run(
            &kernel.vmlinux()?,
            file.path(),
            memory,
            self.clock,
            self.limit,
        )
    }

    fn load_order(&self, kernel: &Kernel) -> Result<Vec<Module>, Error> {
        let wanted = self
            .features
            .iter()
            .flat_map(|feature| feature.modules())
            .copied()
            .chain(self.modules.iter().map(String::as_str));
        kernel.load_order(wanted, &self.without)
    }
}

fn test_binary() -> Result<PathBuf, Error> {
    std::env::current_exe().map_err(Error::io("find the test binary"))
}

/// Of libtest: only ignored tests, since the test that boots the guest is one
/// that is not.
fn arguments(filter: &str) -> [&str; 3] {
    ["--ignored", "--test-threads=1", filter]
}

/// One word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_for_the_shell_survives_its_own_quotes() {
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!("printf %s {}", quoted("it's $HOME `x`")))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "it's $HOME `x`");
    }
}
