//! How fast a pod may receive and send (capability `bandwidth`).
//!
//! What goes to the pod waits in a token bucket of the node's end of its cable.
//! What comes from it is led through a device of its own (an IFB) and waits in
//! that one's token bucket: the pod's end would be within the pod's reach.

use ipam::Attachment;
use linux::link::{self, Link};
use linux::netlink::Socket;
use linux::qdisc::{self, Qdisc, TokenBucket};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The limits; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// What the pod receives, in bits a second.
    pub ingress_rate: u64,
    /// What it may receive at once after a pause, in bits.
    pub ingress_burst: u64,
    /// What it sends, in bits a second.
    pub egress_rate: u64,
    /// What it may send at once after a pause, in bits.
    pub egress_burst: u64,
}

/// Microseconds that a packet waits at most in a full queue.
const LATENCY: u64 = 25_000;
/// Microseconds' worth of packets that may go at once when nothing is said.
const BURST: u64 = 10_000;

impl Bandwidth {
    /// Refuses what the kernel cannot count.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        for (key, rate, burst) in [
            ("ingress", self.ingress_rate, self.ingress_burst),
            ("egress", self.egress_rate, self.egress_burst),
        ] {
            if burst / 8 > u64::from(u32::MAX) {
                return Err(Error::Configuration(format!(
                    "bandwidth: {key}Burst {burst} is more than 4 GiB"
                )));
            }
            if rate != 0 && rate < 8 {
                return Err(Error::Configuration(format!(
                    "bandwidth: {key}Rate {rate} is less than a byte a second"
                )));
            }
            if rate == 0 && burst != 0 {
                return Err(Error::Configuration(format!(
                    "bandwidth: {key}Burst needs {key}Rate"
                )));
            }
        }
        Ok(())
    }
}

/// Name of the device that queues what a pod sends: `pwi` and 11 hexadecimal
/// digits of the same hash as the cable's.
pub fn interface(attachment: &Attachment) -> String {
    format!("pwi{}", &attachment.key()[..11])
}

fn bucket(rate: u64, burst: u64, mtu: u32) -> TokenBucket {
    let rate = rate / 8;
    let worth = |microseconds: u64| {
        let bytes = u128::from(rate) * u128::from(microseconds) / 1_000_000;
        u32::try_from(bytes).unwrap_or(u32::MAX)
    };
    let burst = match u32::try_from(burst / 8) {
        Ok(0) => worth(BURST),
        Ok(burst) => burst,
        Err(_) => u32::MAX,
    };
    // A bucket smaller than a packet would let none through.
    let burst = burst.max(mtu.saturating_mul(2));
    TokenBucket {
        rate,
        burst,
        limit: burst.saturating_add(worth(LATENCY)),
    }
}

/// Sets the limits of a pod's cable.
pub(crate) fn limit(
    socket: &mut Socket,
    attachment: &Attachment,
    cable: &Link,
    bandwidth: &Bandwidth,
) -> Result<(), Error> {
    let mut requests = Vec::new();
    if bandwidth.ingress_rate != 0 {
        let bucket = bucket(bandwidth.ingress_rate, bandwidth.ingress_burst, cable.mtu);
        requests.push(qdisc::set_token_bucket(cable.index, &bucket));
    }
    if bandwidth.egress_rate != 0 {
        let name = interface(attachment);
        socket.execute(&link::add_ifb(&name))?;
        let Some(queue) = link::get(socket, &name)? else {
            return Err(Error::Io(format!(
                "interface {name} vanished while it was being set up"
            )));
        };
        let bucket = bucket(bandwidth.egress_rate, bandwidth.egress_burst, cable.mtu);
        requests.extend([
            qdisc::set_token_bucket(queue.index, &bucket),
            qdisc::add_ingress(cable.index),
            qdisc::redirect_received(cable.index, queue.index),
        ]);
    }
    match socket.execute_all(&requests) {
        Err(error) if error.not_found() => Err(Error::NotAvailable(format!(
            "{error}; bandwidth limits need the kernel's tbf, ingress, u32, mirred and ifb \
             (CONFIG_NET_SCH_TBF, NET_SCH_INGRESS, NET_CLS_U32, NET_ACT_MIRRED, IFB)"
        ))),
        other => Ok(other?),
    }
}

/// Whether a pod's cable has its limits.
pub(crate) fn verify(
    socket: &mut Socket,
    attachment: &Attachment,
    cable: &Link,
    bandwidth: &Bandwidth,
) -> Result<(), Error> {
    let lost = |name: &str, rate: u64| {
        Err(Error::Mismatch(format!(
            "interface {name} of the node has lost the limit of {rate} bits a second"
        )))
    };
    let limits = |found: &[Qdisc], rate: u64| found.iter().any(|q| q.rate == Some(rate / 8));
    let found = qdisc::list(socket, cable.index)?;
    if bandwidth.ingress_rate != 0 && !limits(&found, bandwidth.ingress_rate) {
        return lost(&cable.name, bandwidth.ingress_rate);
    }
    if bandwidth.egress_rate != 0 {
        let name = interface(attachment);
        let queue = match link::get(socket, &name)? {
            Some(queue) => qdisc::list(socket, queue.index)?,
            None => Vec::new(),
        };
        let redirected = found.iter().any(|qdisc| qdisc.kind == "ingress");
        if !redirected || !limits(&queue, bandwidth.egress_rate) {
            return lost(&name, bandwidth.egress_rate);
        }
    }
    Ok(())
}
