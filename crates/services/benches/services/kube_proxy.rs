//! The same Services in kube-proxy's layouts, fed to the programs kube-proxy
//! runs: nftables (a chain for each Service and endpoint, an anonymous map for
//! each Service) and iptables (the same chains, a statistic match for each
//! endpoint).

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use linux::namespace::NetworkNamespace;

use crate::cluster::{self, ENDPOINTS, PORT, TARGET_PORT};

/// A program that takes rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// `nft -f -`.
    Nft,
    /// `iptables-nft-restore`.
    IptablesNft,
    /// `iptables-legacy-restore`.
    IptablesLegacy,
}

impl Program {
    pub(crate) const ALL: [Self; 3] = [Self::Nft, Self::IptablesNft, Self::IptablesLegacy];

    /// What it is called in tables.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft -f",
            Self::IptablesNft => "iptables-nft-restore",
            Self::IptablesLegacy => "iptables-legacy-restore",
        }
    }

    const fn command(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Nft => ("nft", &["-f", "-"]),
            Self::IptablesNft => ("iptables-nft-restore", &["--noflush", "--wait"]),
            Self::IptablesLegacy => ("iptables-legacy-restore", &["--noflush", "--wait"]),
        }
    }

    /// All rules of so many Services.
    pub(crate) fn everything(self, services: usize) -> String {
        match self {
            Self::Nft => nft_everything(services),
            Self::IptablesNft | Self::IptablesLegacy => iptables_everything(services),
        }
    }

    /// What replaces the last endpoint of a Service: that of `generation` by
    /// that of the next.
    pub(crate) fn change(self, number: usize, generation: usize) -> String {
        let old = cluster::endpoints(number, generation)[ENDPOINTS - 1];
        let endpoints = cluster::endpoints(number, generation + 1);
        match self {
            Self::Nft => nft_change(number, old, endpoints),
            Self::IptablesNft | Self::IptablesLegacy => iptables_change(number, old, endpoints),
        }
    }

    /// Runs it in a namespace. `None`: it was ended after `patience`.
    pub(crate) fn run(
        self,
        namespace: &NetworkNamespace,
        rules: &str,
        patience: Duration,
    ) -> anyhow::Result<Option<Duration>> {
        let (program, arguments) = self.command();
        let started = Instant::now();
        let mut child = namespace
            .run(|| {
                Command::new(program)
                    .args(arguments)
                    .stdin(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
            })?
            .with_context(|| format!("starting {program}"))?;
        let mut stdin = child.stdin.take().context("it is piped")?;
        std::thread::scope(|scope| {
            // Ends with an error if the program ends before it has read all.
            scope.spawn(move || stdin.write_all(rules.as_bytes()));
            loop {
                if let Some(status) = child.try_wait()? {
                    if status.success() {
                        return Ok(Some(started.elapsed()));
                    }
                    let mut errors = String::new();
                    if let Some(mut stderr) = child.stderr.take() {
                        stderr.read_to_string(&mut errors)?;
                    }
                    errors.truncate(1000);
                    bail!("{program}: {status}: {errors}");
                }
                if started.elapsed() > patience {
                    child.kill()?;
                    child.wait()?;
                    return Ok(None);
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        })
    }
}

fn nft_service_chain(number: usize) -> String {
    format!(
        "service-{number:08X}-default/{}/tcp/http",
        cluster::name(number)
    )
}

fn nft_endpoint_chain(number: usize, endpoint: Ipv4Addr) -> String {
    format!(
        "endpoint-{:08X}-default/{}/tcp/http__{endpoint}/{TARGET_PORT}",
        endpoint.to_bits(),
        cluster::name(number)
    )
}

fn nft_service_rules(number: usize, endpoints: [Ipv4Addr; ENDPOINTS]) -> [String; 2] {
    let address = cluster::address(number);
    let choices = endpoints.map(|endpoint| nft_endpoint_chain(number, endpoint));
    let choices: Vec<String> = choices
        .iter()
        .enumerate()
        .map(|(index, chain)| format!("{index} : goto {chain}"))
        .collect();
    [
        format!(
            "ip daddr {address} tcp dport {PORT} ip saddr != 10.0.0.0/8 jump mark-for-masquerade"
        ),
        format!(
            "numgen random mod {ENDPOINTS} vmap {{ {} }}",
            choices.join(", ")
        ),
    ]
}

fn nft_endpoint_rules(endpoint: Ipv4Addr) -> [String; 2] {
    [
        format!("ip saddr {endpoint} jump mark-for-masquerade"),
        format!("meta l4proto tcp dnat to {endpoint}:{TARGET_PORT}"),
    ]
}

fn nft_everything(services: usize) -> String {
    let mut text = String::from(
        "table ip kube-proxy {
set cluster-ips { type ipv4_addr; }
map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
chain masquerading { meta mark and 0x4000 == 0 return; meta mark set meta mark xor 0x4000; masquerade fully-random; }
chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
chain nat-output { type nat hook output priority -100; jump services; }
chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
",
    );
    let mut elements = String::new();
    let mut addresses = String::new();
    for number in 0..services {
        let endpoints = cluster::endpoints(number, 0);
        for endpoint in endpoints {
            let [hairpin, translate] = nft_endpoint_rules(endpoint);
            let chain = nft_endpoint_chain(number, endpoint);
            // Writing to a String cannot fail.
            let _ = writeln!(text, "chain {chain} {{ {hairpin}; {translate}; }}");
        }
        let [mark, choose] = nft_service_rules(number, endpoints);
        let chain = nft_service_chain(number);
        let address = cluster::address(number);
        let _ = writeln!(text, "chain {chain} {{ {mark}; {choose}; }}");
        let _ = write!(elements, "{address} . tcp . {PORT} : goto {chain},");
        let _ = write!(addresses, "{address},");
    }
    let _ = write!(
        text,
        "}}\nadd element ip kube-proxy service-ips {{ {elements} }}\n\
         add element ip kube-proxy cluster-ips {{ {addresses} }}\n"
    );
    text
}

fn nft_change(number: usize, old: Ipv4Addr, endpoints: [Ipv4Addr; ENDPOINTS]) -> String {
    let new = endpoints[ENDPOINTS - 1];
    let (service, old) = (nft_service_chain(number), nft_endpoint_chain(number, old));
    let new_chain = nft_endpoint_chain(number, new);
    let mut text = format!(
        "add chain ip kube-proxy {new_chain}\nflush chain ip kube-proxy {new_chain}\n\
         flush chain ip kube-proxy {service}\n"
    );
    for rule in nft_endpoint_rules(new) {
        let _ = writeln!(text, "add rule ip kube-proxy {new_chain} {rule}");
    }
    for rule in nft_service_rules(number, endpoints) {
        let _ = writeln!(text, "add rule ip kube-proxy {service} {rule}");
    }
    let _ = write!(
        text,
        "flush chain ip kube-proxy {old}\ndelete chain ip kube-proxy {old}\n"
    );
    text
}

fn service_chain(number: usize) -> String {
    format!("KUBE-SVC-{number:016X}")
}

fn endpoint_chain(endpoint: Ipv4Addr) -> String {
    format!("KUBE-SEP-{:016X}", endpoint.to_bits())
}

fn service_rules(text: &mut String, number: usize, endpoints: [Ipv4Addr; ENDPOINTS]) {
    let (chain, name, address) = (
        service_chain(number),
        cluster::name(number),
        cluster::address(number),
    );
    let _ = writeln!(
        text,
        "-A {chain} ! -s 10.0.0.0/8 -d {address}/32 -p tcp -m comment --comment \
         \"default/{name}:http cluster IP\" -m tcp --dport {PORT} -j KUBE-MARK-MASQ"
    );
    for (index, endpoint) in endpoints.into_iter().enumerate() {
        let left = ENDPOINTS - index;
        let choice = match left {
            1 => String::new(),
            _ => format!(
                "-m statistic --mode random --probability {:.10} ",
                1.0 / left as f64
            ),
        };
        let _ = writeln!(
            text,
            "-A {chain} -m comment --comment \"default/{name}:http -> {endpoint}:{TARGET_PORT}\" \
             {choice}-j {}",
            endpoint_chain(endpoint)
        );
    }
}

fn endpoint_rules(text: &mut String, number: usize, endpoint: Ipv4Addr) {
    let (chain, name) = (endpoint_chain(endpoint), cluster::name(number));
    let comment = format!("-m comment --comment \"default/{name}:http\"");
    let _ = write!(
        text,
        "-A {chain} -s {endpoint}/32 {comment} -j KUBE-MARK-MASQ\n\
         -A {chain} -p tcp {comment} -m tcp -j DNAT --to-destination {endpoint}:{TARGET_PORT}\n"
    );
}

fn iptables_everything(services: usize) -> String {
    let mut text = String::from(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n",
    );
    for number in 0..services {
        let _ = writeln!(text, ":{} - [0:0]", service_chain(number));
        for endpoint in cluster::endpoints(number, 0) {
            let _ = writeln!(text, ":{} - [0:0]", endpoint_chain(endpoint));
        }
    }
    text.push_str(
        "-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n\
         -A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n",
    );
    for number in 0..services {
        let (name, address) = (cluster::name(number), cluster::address(number));
        let endpoints = cluster::endpoints(number, 0);
        let _ = writeln!(
            text,
            "-A KUBE-SERVICES -d {address}/32 -p tcp -m comment --comment \
             \"default/{name}:http cluster IP\" -m tcp --dport {PORT} -j {}",
            service_chain(number)
        );
        service_rules(&mut text, number, endpoints);
        for endpoint in endpoints {
            endpoint_rules(&mut text, number, endpoint);
        }
    }
    text.push_str("COMMIT\n");
    text
}

fn iptables_change(number: usize, old: Ipv4Addr, endpoints: [Ipv4Addr; ENDPOINTS]) -> String {
    let new = endpoints[ENDPOINTS - 1];
    let mut text = String::from("*nat\n");
    for chain in [
        service_chain(number),
        endpoint_chain(new),
        endpoint_chain(old),
    ] {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    service_rules(&mut text, number, endpoints);
    endpoint_rules(&mut text, number, new);
    let _ = write!(text, "-X {}\nCOMMIT\n", endpoint_chain(old));
    text
}
