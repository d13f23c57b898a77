//! What `podwire dns query` and `podwire inspect dns` are told.

use std::net::IpAddr;
use std::sync::Arc;

use ::dns::model::Addressing;
use ::dns::zone::{Entry, endpoint_label};
use hickory_proto::rr::{Name, RecordType};
use serde::{Deserialize, Serialize};

use super::Dns;
use crate::admin::{Admin, Question, Refusal};

/// An answer, and why it is so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Response code.
    pub code: String,
    /// Why.
    pub reason: String,
    /// The records of the answer, as zone files have them.
    pub answers: Vec<String>,
    /// The records of the authority section.
    pub authorities: Vec<String>,
}

/// Names of the zone, with whose they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    /// The records.
    pub records: Vec<Record>,
    /// The last questions that were slow or failed, the oldest first.
    pub log: Vec<Note>,
}

/// A record and the object that made it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: String,
    /// Its data.
    pub data: String,
    /// The object.
    pub object: String,
}

/// A question that was slow or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// When, in seconds since 1970.
    pub at: u64,
    /// Who asked.
    pub client: String,
    /// The name.
    pub name: String,
    /// The type.
    pub kind: String,
    /// The response code.
    pub code: String,
    /// How long it took, milliseconds.
    pub took_ms: u64,
    /// Why.
    pub reason: String,
}

/// Answers for the paths about DNS.
pub(super) fn add(admin: &mut Admin, dns: &Arc<Dns>) {
    let asked = dns.clone();
    admin.add("/v1/dns/query", move |question| {
        let dns = asked.clone();
        tokio::spawn(async move { query(&dns, question).await });
    });
    let asked = dns.clone();
    admin.add("/v1/dns/records", move |question| {
        question.answer(&records(&asked));
    });
}

async fn query(dns: &Dns, question: Question) {
    let name = question.parameter("name").unwrap_or_default();
    let kind = question.parameter("type").unwrap_or("A");
    let from = question.parameter("from");
    let read = read(dns, name, kind, from);
    match read {
        Ok((name, kind, client)) => {
            let answer = dns.shared.query(&name, kind, client).await;
            let lines = |records: &[hickory_proto::rr::Record]| {
                records.iter().map(ToString::to_string).collect()
            };
            question.answer(&Answer {
                code: answer.code.to_string(),
                reason: answer.reason.to_string(),
                answers: lines(&answer.answers),
                authorities: lines(&answer.authorities),
            });
        }
        Err(refusal) => question.refuse(refusal),
    }
}

type Asked = (Name, RecordType, Option<IpAddr>);

fn read(dns: &Dns, name: &str, kind: &str, from: Option<&str>) -> Result<Asked, Refusal> {
    let mut asked = Name::from_ascii(name)
        .map_err(|error| Refusal::Invalid(format!("{name:?} is no name: {error}")))?;
    asked.set_fqdn(true);
    let kind = kind
        .to_ascii_uppercase()
        .parse()
        .map_err(|_| Refusal::Invalid(format!("{kind:?} is no type of records")))?;
    let client = match from {
        None => None,
        Some(from) => {
            let (namespace, pod) = from.split_once('/').unwrap_or(("default", from));
            let found = dns
                .shared
                .read(|zone| zone.pod_named(namespace, pod)?.addresses.first().copied());
            Some(found.ok_or_else(|| {
                Refusal::NotFound(format!(
                    "this node has no pod {namespace}/{pod} with an address of its own"
                ))
            })?)
        }
    };
    Ok((asked, kind, client))
}

fn records(dns: &Dns) -> Records {
    let domain = dns.shared.config().domain.to_ascii();
    let mut records = dns.shared.read(|zone| {
        zone.services()
            .flat_map(|entry| of_service(entry, &domain))
            .collect::<Vec<_>>()
    });
    records.sort();
    records.dedup();
    let log = dns.shared.journal().notes().into_iter().map(|note| Note {
        at: note
            .at
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        client: note.client.to_string(),
        name: note.name,
        kind: note.kind,
        code: note.code,
        took_ms: u64::try_from(note.took.as_millis()).unwrap_or(u64::MAX),
        reason: note.reason,
    });
    Records {
        records,
        log: log.collect(),
    }
}

fn of_service(entry: &Entry, domain: &str) -> Vec<Record> {
    let key = entry.key();
    let name = format!("{}.{}.svc.{domain}", key.name, key.namespace);
    let service = format!("Service {key}");
    let of = |name: String, address: IpAddr, object: String| Record {
        name,
        kind: if address.is_ipv4() { "A" } else { "AAAA" }.to_owned(),
        data: address.to_string(),
        object,
    };
    match entry.addressing() {
        None => Vec::new(),
        Some(Addressing::External(target)) => vec![Record {
            name,
            kind: "CNAME".to_owned(),
            data: target.to_ascii(),
            object: service,
        }],
        Some(Addressing::Cluster(addresses)) => addresses
            .iter()
            .map(|address| of(name.clone(), *address, service.clone()))
            .collect(),
        Some(Addressing::Headless) => entry
            .endpoints()
            .flat_map(|(slice, endpoint, _)| {
                let object = format!("EndpointSlice {}/{slice}", key.namespace);
                let own = format!("{}.{name}", endpoint_label(endpoint));
                [
                    of(name.clone(), endpoint.address, object.clone()),
                    of(own, endpoint.address, object),
                ]
            })
            .collect(),
    }
}
