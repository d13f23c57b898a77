//! `podwire inspect services` and `podwire inspect service`.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use agent::inspection::{Counted, EndpointView, FrontendView, Service, Simulated};
use clap::{Args, ValueEnum};
use services::FrontendKey;
use services::iptables::{self, Variant};

use super::{ask, lines, show, table};
use crate::output;
use crate::place::Place;

/// What is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
    /// The rules of the nftables proxy as the kernel has them
    Nft,
    /// The rules of the iptables proxy as the kernel has them
    Iptables,
    /// The virtual servers of the IPVS proxy as the kernel has them
    Ipvs,
}

/// Services as the proxy sees them
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only this one, with all its endpoints and why each is (not) used
    #[arg(value_name = "NAMESPACE/NAME")]
    name: Option<String>,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// One Service, or what becomes of a packet
#[derive(Debug, Args)]
pub(crate) struct One {
    /// The Service
    #[arg(value_name = "NAMESPACE/NAME", required_unless_present = "simulate")]
    name: Option<String>,
    /// Walk a packet from an address to an address and port through the planned
    /// rules and say what becomes of it
    #[arg(long, num_args = 2, value_names = ["SRC", "DST:PORT"], conflicts_with = "name")]
    simulate: Option<Vec<String>>,
    /// The packet's protocol
    #[arg(long, value_parser = ["tcp", "udp", "sctp"], default_value = "tcp", requires = "simulate")]
    protocol: String,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = super::Output::Text)]
    output: super::Output,
}

/// Why it could not be shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The agent did not answer.
    #[error(transparent)]
    Agent(#[from] agent::admin::Error),
    /// The kernel could not be read.
    #[error("cannot read the rules: {0}; this needs root")]
    Kernel(#[from] services::Error),
    /// A packet that cannot be.
    #[error("{0}")]
    Packet(String),
}

/// Shows all Services, or one.
pub(crate) fn list(place: &Place, options: &List) -> Result<ExitCode, Error> {
    let name = options.name.as_deref();
    let form = match options.output {
        Output::Text => super::Output::Text,
        Output::Json => super::Output::Json,
        Output::Nft => return nft(place, name),
        Output::Iptables => return iptables(place, name),
        Output::Ipvs => return ipvs(place, name),
    };
    let services = fetch(place, name)?;
    Ok(match name {
        Some(_) => show(form, &services, |services| {
            services.iter().map(detail).collect()
        }),
        None => show(form, &services, |services| overview(services)),
    })
}

/// Shows one Service, or simulates a packet.
pub(crate) fn one(place: &Place, options: &One) -> Result<ExitCode, Error> {
    match (&options.simulate, &options.name) {
        (Some(packet), _) => {
            let [source, destination] = &packet[..] else {
                let text = "--simulate takes a source address, and a destination ADDRESS:PORT";
                return Err(Error::Packet(text.into()));
            };
            let simulated = simulate(place, source, destination, &options.protocol)?;
            Ok(show(options.output, &simulated, verdict))
        }
        (None, name) => {
            let services = fetch(place, name.as_deref())?;
            Ok(show(options.output, &services, |services| {
                services.iter().map(detail).collect()
            }))
        }
    }
}

fn fetch(place: &Place, name: Option<&str>) -> Result<Vec<Service>, agent::admin::Error> {
    let parameters: Vec<(&str, &str)> = name.map(|name| ("name", name)).into_iter().collect();
    ask(place, "/v1/services", &parameters)
}

fn simulate(
    place: &Place,
    source: &str,
    destination: &str,
    protocol: &str,
) -> Result<Simulated, Error> {
    if source.parse::<IpAddr>().is_err() {
        let text = format!("the source {source:?} is no address such as 10.200.1.5 or fd00::5");
        return Err(Error::Packet(text));
    }
    if destination.parse::<SocketAddr>().is_err() {
        let text = format!(
            "the destination {destination:?} is no address and port such as 10.96.0.10:53 or \
             [fd00:96::a]:53"
        );
        return Err(Error::Packet(text));
    }
    let parameters = [
        ("source", source),
        ("destination", destination),
        ("protocol", protocol),
    ];
    Ok(ask(place, "/v1/simulation", &parameters)?)
}

/// The frontends of a Service, for a look at its rules only; all when none is named.
fn frontends(place: &Place, name: Option<&str>) -> Result<Option<Vec<FrontendKey>>, Error> {
    if name.is_none() {
        return Ok(None);
    }
    let services = fetch(place, name)?;
    let keys = services.iter().flat_map(|service| &service.frontends);
    let keys = keys.filter_map(|frontend| {
        Some(FrontendKey {
            address: frontend.address,
            protocol: services::Protocol::from_name(Some(&frontend.protocol.to_uppercase()))?,
            port: frontend.port,
        })
    });
    Ok(Some(keys.collect()))
}

fn nft(place: &Place, name: Option<&str>) -> Result<ExitCode, Error> {
    let wanted = frontends(place, name)?;
    let text = services::nftables::listing(&|key| match &wanted {
        None => true,
        Some(wanted) => key.is_some_and(|key| wanted.contains(key)),
    })?;
    Ok(output::print(text.as_bytes()))
}

fn ipvs(place: &Place, name: Option<&str>) -> Result<ExitCode, Error> {
    let wanted = frontends(place, name)?;
    let text = services::ipvs::listing(&|key| match &wanted {
        None => true,
        Some(wanted) => wanted.contains(key),
    })?;
    Ok(output::print(text.as_bytes()))
}

fn iptables(place: &Place, name: Option<&str>) -> Result<ExitCode, Error> {
    // A Service that does not exist is said, not shown as no rules.
    if name.is_some() {
        fetch(place, name)?;
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/sbin:/sbin"));
    let mut text = String::new();
    for variant in Variant::ALL {
        let rules = iptables::listing(variant, &path, name)?;
        if !rules.is_empty() {
            text.push_str(&format!("# iptables, {}\n{rules}", variant.name()));
        }
    }
    Ok(output::print(text.as_bytes()))
}

fn overview(services: &[Service]) -> String {
    let mut rows = table(&[
        "SERVICE", "KIND", "ADDRESS", "POLICY", "ANSWER", "PACKETS", "BYTES",
    ]);
    let mut notes = String::new();
    for service in services {
        for frontend in &service.frontends {
            let (packets, bytes) = counted(frontend.counted);
            rows.add_row([
                service.name.clone(),
                frontend.kind.clone(),
                address(frontend),
                frontend.policy.clone(),
                frontend.verdict.clone(),
                packets,
                bytes,
            ]);
        }
        notes.push_str(&problems(service));
    }
    format!("{}{notes}", lines(&rows))
}

fn problems(service: &Service) -> String {
    let not_programmed = service
        .not_programmed
        .iter()
        .map(|why| format!("{}: not programmed: {why}\n", service.name));
    let others = service
        .problems
        .iter()
        .map(|problem| format!("{}: {problem}\n", service.name));
    not_programmed.chain(others).collect()
}

fn detail(service: &Service) -> String {
    let mut text = format!("Service {}\n", service.name);
    if let Some((port, count)) = service.health_check {
        text.push_str(&format!(
            "Health check at port {port}: {count} endpoint(s) on this node\n"
        ));
    }
    for frontend in &service.frontends {
        let named = match frontend.port_name.as_str() {
            "" => String::new(),
            name => format!(" ({name})"),
        };
        text.push_str(&format!(
            "\n{} {}{named}, policy {}: {}\n",
            frontend.kind,
            address(frontend),
            frontend.policy,
            frontend.verdict
        ));
        if let Some(seconds) = frontend.affinity_seconds {
            text.push_str(&format!("  a client keeps its endpoint for {seconds} s\n"));
        }
        if let Some(sources) = &frontend.sources {
            text.push_str(&format!("  only from {}\n", sources.join(", ")));
        }
        if frontend.backends.is_empty() {
            continue;
        }
        let mut rows = table(&["  BACKEND", "PACKETS", "BYTES"]);
        for backend in &frontend.backends {
            let (packets, bytes) = counted(backend.counted);
            rows.add_row([format!("  {}", backend.address), packets, bytes]);
        }
        text.push_str(&lines(&rows));
    }
    for port in &service.ports {
        let name = match port.name.as_str() {
            "" => "unnamed",
            name => name,
        };
        text.push_str(&format!(
            "\nEndpoints of port {name}, {}, {}\n",
            port.protocol, port.family
        ));
        let mut rows = table(&["  ENDPOINT", "NODE", "STATE", "CLUSTER", "LOCAL"]);
        for endpoint in &port.endpoints {
            let used =
                |excluded: &Option<String>| excluded.clone().unwrap_or_else(|| "used".into());
            rows.add_row([
                format!("  {}", endpoint.address),
                endpoint.node.clone().unwrap_or_else(|| "-".into()),
                state(endpoint).to_owned(),
                used(&endpoint.cluster_excluded),
                used(&endpoint.local_excluded),
            ]);
        }
        text.push_str(&lines(&rows));
    }
    let problems = problems(service);
    if !problems.is_empty() {
        text.push_str(&format!("\n{problems}"));
    }
    text
}

fn state(endpoint: &EndpointView) -> &'static str {
    match (endpoint.ready, endpoint.terminating, endpoint.serving) {
        (true, ..) => "ready",
        (false, true, true) => "terminating, serving",
        (false, true, false) => "terminating",
        (false, false, _) => "not ready",
    }
}

fn address(frontend: &FrontendView) -> String {
    let address = SocketAddr::new(frontend.address, frontend.port);
    format!("{address}/{}", frontend.protocol)
}

fn counted(count: Option<Counted>) -> (String, String) {
    count.map_or_else(
        || ("-".into(), "-".into()),
        |count| (count.packets.to_string(), count.bytes.to_string()),
    )
}

fn verdict(simulated: &Simulated) -> String {
    let service = match &simulated.service {
        Some(service) => format!("for Service {service}"),
        None => "for no Service".to_owned(),
    };
    let masqueraded = match simulated.masqueraded {
        Some(true) => ", its source becomes the node's address",
        Some(false) => ", its source stays",
        None => "",
    };
    let mut text = match simulated.verdict.as_str() {
        "direct" => format!("{service}: goes where it is addressed to{masqueraded}\n"),
        "service" => format!("{service}: goes to one of{masqueraded}\n"),
        other => format!("{service}: {other}\n"),
    };
    for backend in &simulated.backends {
        text.push_str(&format!("  {backend}\n"));
    }
    if !simulated.steps.is_empty() {
        text.push_str("by these rules\n");
    }
    for step in &simulated.steps {
        text.push_str(&format!("  {step}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_a_sentence() {
        let simulated = Simulated {
            service: Some("shop/web".into()),
            verdict: "service".into(),
            backends: vec!["10.200.1.5:8080".parse().unwrap()],
            masqueraded: Some(true),
            steps: vec!["service-prerouting rule 3".into()],
        };
        assert_eq!(
            verdict(&simulated),
            "for Service shop/web: goes to one of, its source becomes the node's address\n  \
             10.200.1.5:8080\nby these rules\n  service-prerouting rule 3\n"
        );
    }

    #[test]
    fn a_service_is_shown_with_reasons_and_counters() {
        let service: Service = serde_json::from_value(serde_json::json!({
            "name": "shop/web", "not_programmed": null, "health_check": [30123, 1],
            "problems": ["spec.clusterIPs has \"x\""],
            "frontends": [{"kind": "ClusterIP", "address": "fd00:96::7", "protocol": "tcp",
                "port": 80, "port_name": "http", "policy": "Cluster", "verdict": "to 1 endpoint",
                "affinity_seconds": 10800, "sources": null, "counted": {"packets": 3, "bytes": 180},
                "backends": [{"address": "[fd00::5]:8080", "counted": {"packets": 3, "bytes": 180}}]}],
            "ports": [{"name": "http", "protocol": "tcp", "family": "IPv6", "endpoints": [
                {"address": "[fd00::6]:8080", "node": "node-2", "ready": false, "serving": false,
                 "terminating": false, "cluster_excluded": "not ready",
                 "local_excluded": "not on this node"}]}],
        }))
        .unwrap();
        let text = detail(&service);
        for part in [
            "ClusterIP [fd00:96::7]:80/tcp (http), policy Cluster: to 1 endpoint",
            "keeps its endpoint for 10800 s",
            "[fd00::5]:8080",
            "180",
            "not ready",
            "not on this node",
            "shop/web: spec.clusterIPs has",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(overview(&[service]).contains("[fd00:96::7]:80/tcp"));
    }
}
