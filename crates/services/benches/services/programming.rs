//! How long rules take: all of them from nothing, taken over by a restart, and one
//! endpoint changed.

use std::time::{Duration, Instant};

use anyhow::ensure;
use linux::namespace::NetworkNamespace;
use linux::nftables::{Batch, Family, Nftables};
use podwire_services::compile::{self, TABLE};
use podwire_services::{Backend, FrontendKey, Protocol, Proxy};

use crate::cluster::{self, ENDPOINTS, PORT, TARGET_PORT};
use crate::kube_proxy::Program;
use crate::show::Times;

/// Changes of one endpoint by podwire.
const CHANGES: usize = 1000;
/// Changes by a program, unless they take longer than this in all.
const PROGRAM_CHANGES: usize = 15;
const PROGRAM_CHANGES_TIME: Duration = Duration::from_secs(5);

/// What podwire took.
#[derive(Debug)]
pub(crate) struct Own {
    /// From the first object to the kernel's answer.
    pub(crate) first: Duration,
    /// Of it processor time, in the process and in the kernel for it.
    pub(crate) processor: Duration,
    /// Set elements sent.
    pub(crate) elements: usize,
    /// A restart that finds them all: from its beginning to the kernel's answer.
    pub(crate) adopted: Duration,
    /// From a slice to the kernel's answer.
    pub(crate) change: Times,
    /// Of it in the kernel: the same elements exchanged by a batch made before.
    pub(crate) kernel: Times,
}

/// podwire with so many Services.
pub(crate) fn own(services: usize) -> anyhow::Result<Own> {
    NetworkNamespace::create()?.run(|| {
        let mut proxy = Proxy::start(cluster::facts())?;
        let (processor, started) = (processor_time(), Instant::now());
        cluster::tell(&mut proxy, services);
        let stats = proxy.sync()?;
        let first = started.elapsed();
        let processor = processor_time().saturating_sub(processor);
        drop(proxy);
        let started = Instant::now();
        let mut proxy = Proxy::start(cluster::facts())?;
        cluster::tell(&mut proxy, services);
        let unchanged = proxy.sync()?;
        let adopted = started.elapsed();
        ensure!(
            unchanged.elements == 0,
            "a restart changes nothing: {unchanged:?}"
        );
        let last = services - 1;
        let mut times = Vec::with_capacity(CHANGES);
        for generation in 1..=CHANGES {
            let slice = cluster::slice(last, cluster::endpoints(last, generation));
            let started = Instant::now();
            proxy.endpoint_slice_changed(&slice);
            let stats = proxy.sync()?;
            times.push(started.elapsed());
            ensure!(stats.elements == 2, "a change is two elements: {stats:?}");
        }
        Ok(Own {
            first,
            processor,
            elements: stats.elements,
            adopted,
            change: Times::of(times),
            kernel: kernel(last)?,
        })
    })?
}

/// Exchanges one backend of a Service by batches that are made before the time
/// is taken.
fn kernel(number: usize) -> anyhow::Result<Times> {
    let frontend = FrontendKey {
        address: cluster::address(number).into(),
        protocol: Protocol::Tcp,
        port: PORT,
    };
    let set = compile::SetNames::of(podwire_services::Family::V4).backends;
    let mut nft = Nftables::open()?;
    let slots = nft.elements(Family::Inet, TABLE, set)?;
    let of = |generation: usize| Backend {
        address: cluster::endpoints(number, generation)[ENDPOINTS - 1].into(),
        port: TARGET_PORT,
    };
    // Which slot has it was podwire's choice.
    let slot = (0..ENDPOINTS as u32)
        .find(|slot| slots.contains(&compile::backend_element(&frontend, *slot, of(CHANGES))));
    let slot = slot.ok_or_else(|| anyhow::anyhow!("the last change is not in the kernel"))?;
    let mut times = Vec::with_capacity(CHANGES);
    for generation in CHANGES..2 * CHANGES {
        let element = |generation| compile::backend_element(&frontend, slot, of(generation));
        let mut batch = Batch::new(Family::Inet, TABLE, None);
        batch.delete_elements(set, &[element(generation)]);
        batch.add_elements(set, &[element(generation + 1)]);
        let started = Instant::now();
        nft.commit(batch)?;
        times.push(started.elapsed());
    }
    Ok(Times::of(times))
}

/// What a program took, as far as it was asked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Theirs {
    pub(crate) first: Option<Duration>,
    pub(crate) change: Option<Duration>,
}

/// The same Services by a program of kube-proxy. Without `first` it did not
/// finish within `patience`.
pub(crate) fn theirs(
    program: Program,
    services: usize,
    patience: Duration,
) -> anyhow::Result<Theirs> {
    let namespace = NetworkNamespace::create()?;
    let rules = program.everything(services);
    let Some(first) = program.run(&namespace, &rules, patience)? else {
        return Ok(Theirs::default());
    };
    let started = Instant::now();
    let mut times = Vec::new();
    for generation in 0..PROGRAM_CHANGES {
        let rules = program.change(services - 1, generation);
        match program.run(&namespace, &rules, patience)? {
            Some(time) => times.push(time),
            None => break,
        }
        if started.elapsed() > PROGRAM_CHANGES_TIME {
            break;
        }
    }
    Ok(Theirs {
        first: Some(first),
        change: (!times.is_empty()).then(|| Times::of(times).median),
    })
}

/// What this process has used of the processor, in it and in the kernel for it,
/// in steps of ten milliseconds.
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
