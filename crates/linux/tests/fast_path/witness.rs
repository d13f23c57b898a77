//! Programs that set a namespace up and say what went through it.

use std::io::Write as _;
use std::process::{Command, Stdio};

use podwire_linux::namespace::NetworkNamespace;

/// Runs a program inside a namespace and gives what it prints.
pub(crate) fn run(
    namespace: &NetworkNamespace,
    program: &str,
    arguments: &[&str],
    input: &str,
) -> String {
    let output = namespace
        .run(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(input.as_bytes()).unwrap();
            drop(stdin);
            child.wait_with_output().unwrap()
        })
        .unwrap();
    assert!(output.status.success(), "{program}: {input}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn ip(namespace: &NetworkNamespace, commands: &str) {
    run(namespace, "ip", &["-batch", "-"], commands);
}

pub(crate) fn nft(namespace: &NetworkNamespace, rules: &str) {
    run(namespace, "nft", &["-f", "-"], rules);
}

/// How many packets a counter of a table `witness` has seen.
pub(crate) fn seen(namespace: &NetworkNamespace, family: &str, counter: &str) -> u64 {
    let text = ["-j", "list", "counter", family, "witness", counter];
    let text = run(namespace, "nft", &text, "");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["nftables"][1]["counter"]["packets"].as_u64().unwrap()
}

/// How many programs the kernel has at TCX ingress of an interface.
///
/// Source: `BPF_PROG_QUERY` of `include/uapi/linux/bpf.h`.
pub(crate) fn programs_at(namespace: &NetworkNamespace, interface: u32) -> u32 {
    const PROG_QUERY: libc::c_long = 16;
    const TCX_INGRESS: u32 = 46;
    /// Place of the number of programs.
    const COUNT: usize = 6;
    let mut attribute = [0u32; 16];
    attribute[..2].copy_from_slice(&[interface, TCX_INGRESS]);
    let length = size_of_val(&attribute);
    // SAFETY: the attribute is as long as told, and has no address in it.
    #[allow(unsafe_code)]
    let ask = || unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, &raw mut attribute, length) };
    let result = namespace.run(ask).unwrap();
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    attribute[COUNT]
}

/// How many packets the stack has dropped for the source they had (`rp_filter`).
pub(crate) fn rejected_sources(namespace: &NetworkNamespace) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let text = namespace.run(read).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let [names, values] = [lines.next(), lines.next()].map(|line| line.unwrap().split(' '));
    let mut both = names.zip(values);
    let (_, value) = both
        .find(|(name, _)| *name == "IPReversePathFilter")
        .unwrap();
    value.parse().unwrap()
}
