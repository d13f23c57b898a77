//! Loads many Services of three endpoints into a namespace of its own and
//! changes one endpoint: how long, how many bytes.
//!
//! `cargo run --release -p podwire-services --example scale [SERVICES]...` as root.

use std::time::{Duration, Instant};

use linux::namespace::NetworkNamespace;
use podwire_services::{
    Endpoint, EndpointSlice, Family, NodeFacts, Protocol, Proxy, Service, ServiceName, ServicePort,
    SlicePort,
};

const CHANGES: usize = 50;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut sizes = Vec::new();
    for argument in std::env::args().skip(1) {
        sizes.push(argument.parse::<usize>()?);
    }
    if sizes.is_empty() {
        sizes = vec![10, 1_000, 10_000];
    }
    println!(
        "{:>8} {:>10} {:>10} {:>10} {:>10} {:>12} {:>12} {:>10} {:>10} {:>10} {:>10}",
        "services",
        "table",
        "first",
        "both, cpu",
        "elements",
        "megabytes",
        "one change",
        "best",
        "restart",
        "table/ep",
        "memory/ep"
    );
    for size in sizes {
        let namespace = NetworkNamespace::create()?;
        namespace.run(|| measure(size))??;
    }
    Ok(())
}

fn measure(size: usize) -> Result<(), podwire_services::Error> {
    let facts = NodeFacts {
        node: "node-1".to_owned(),
        addresses: vec![[192, 168, 64, 11].into()],
        ..NodeFacts::default()
    };
    let before = resident();
    let mut proxy = Proxy::start(facts.clone())?;
    let cpu = processor_time();
    let started = Instant::now();
    tell(&mut proxy, size);
    let table = started.elapsed();
    let table_memory = resident().saturating_sub(before);
    let started = Instant::now();
    let stats = proxy.sync()?;
    let first = started.elapsed();
    let cpu = processor_time().saturating_sub(cpu);
    let memory = resident().saturating_sub(before);

    let mut times = Vec::with_capacity(CHANGES);
    for round in 0..CHANGES {
        let slice = slice(size - 1, 100 + (round % 100) as u8);
        let started = Instant::now();
        proxy.endpoint_slice_changed(&slice);
        proxy.sync()?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    drop(proxy);

    let started = Instant::now();
    let mut proxy = Proxy::start(facts)?;
    tell(&mut proxy, size);
    proxy.sync()?;
    let restart = started.elapsed();
    println!(
        "{size:>8} {:>10} {:>10} {:>10} {:>10} {:>10.1} {:>12} {:>12} {:>10} {:>10} {:>10}",
        show(table),
        show(first),
        show(cpu),
        stats.elements,
        stats.bytes as f64 / 1e6,
        show(times[CHANGES / 2]),
        show(times[0]),
        show(restart),
        table_memory / (size * 3).max(1),
        memory / (size * 3).max(1),
    );
    Ok(())
}

fn show(time: Duration) -> String {
    if time < Duration::from_millis(10) {
        format!("{} us", time.as_micros())
    } else {
        format!("{} ms", time.as_millis())
    }
}

/// What this process has used of the processor, in it and in the kernel for it:
/// what the machine's other work does not change. In steps of ten milliseconds.
fn processor_time() -> Duration {
    let ticks = std::fs::read_to_string("/proc/self/stat")
        .ok()
        .and_then(|text| {
            let fields: Vec<u64> = text
                .rsplit_once(')')?
                .1
                .split_whitespace()
                .skip(11)
                .take(2)
                .filter_map(|field| field.parse().ok())
                .collect();
            Some(fields.iter().sum::<u64>())
        })
        .unwrap_or(0);
    Duration::from_millis(ticks * 10)
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split(' ').nth(1)?.parse::<usize>().ok())
        .unwrap_or(0)
        * 4096
}

fn tell(proxy: &mut Proxy, size: usize) {
    for n in 0..size {
        proxy.service_changed(service(n));
        proxy.endpoint_slice_changed(&slice(n, 1));
    }
}

fn service(n: usize) -> Service {
    Service {
        name: ServiceName::new("default", format!("service-{n}")),
        cluster_ips: vec![format!(
            "10.{}.{}.{}",
            96 + n / 65536,
            n / 256 % 256,
            n % 256
        )],
        ports: vec![ServicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        }],
        ..Service::default()
    }
}

/// Three endpoints, the last byte of the third given.
fn slice(n: usize, last: u8) -> EndpointSlice {
    let base = n * 2;
    let address = |index: usize, last: u8| {
        let number = base + index;
        format!("10.{}.{}.{last}", 200 + number / 256 % 50, number % 256)
    };
    EndpointSlice {
        namespace: "default".to_owned(),
        name: format!("service-{n}-abcde"),
        service: format!("service-{n}"),
        family: Family::V4,
        ports: vec![SlicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: Some(8080),
        }],
        endpoints: [address(0, 1), address(1, 1), address(1, last.max(2))]
            .into_iter()
            .map(|address| Endpoint {
                address,
                node: Some("node-2".to_owned()),
                ..Endpoint::default()
            })
            .collect(),
    }
}
