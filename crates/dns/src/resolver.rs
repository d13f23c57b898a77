//! What one question takes: an answer at once, or which names to ask elsewhere
//! and what to make of what they lead to. Pure.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::basis::View;
use crate::config::Config;
use crate::lookup::{Answer, Outcome, Reason, is_ours, lookup};
use crate::search;

/// The next step of a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// It is answered.
    Done(Answer),
    /// Others have to be asked.
    Ask(Pending),
}

/// A question that others have to be asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// The name asked for.
    pub question: Name,
    /// The names to ask for, in order.
    pub names: Vec<Name>,
    /// What goes with it.
    pub purpose: Purpose,
}

/// What the names of a [`Pending`] are asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Purpose {
    /// The one name is the question's: whatever comes is the answer.
    Same,
    /// The one name is where an alias of ours leads; this comes before the rest.
    Alias(Answer),
    /// The names stand in the client's search list: the first that exists is
    /// found. If none does, this is the answer.
    Search(Answer),
}

/// Begins to answer `kind` of `name` for a client.
#[must_use]
pub fn resolve(
    zone: &View<'_>,
    config: &Config,
    name: &Name,
    kind: RecordType,
    client: Option<IpAddr>,
) -> Step {
    let outcome = lookup(zone, config, name, kind);
    let missing = match outcome {
        Outcome::Answer(answer) if answer.code == ResponseCode::NXDomain => answer,
        other => return step(name, other),
    };
    let names = client
        .filter(|_| config.search_completion)
        // A chain of aliases that ends nowhere is no search.
        .filter(|_| missing.answers.is_empty())
        .and_then(|client| zone.client(client))
        .and_then(|pod| search::next_names(config, zone.node_search(), pod, name));
    let Some(names) = names else {
        return Step::Done(missing);
    };
    // Names of ours first, wherever they stand in the list: what is meant by a
    // name that exists in the cluster is known, and asking nobody is faster.
    let (ours, others): (Vec<Name>, Vec<Name>) =
        names.into_iter().partition(|name| is_ours(config, name));
    for found in ours {
        match lookup(zone, config, &found, kind) {
            Outcome::Answer(answer) if answer.code == ResponseCode::NXDomain => {}
            Outcome::Answer(answer) => {
                return Step::Done(found_by_search(config, name, found, answer));
            }
            Outcome::Chase(before, target) => {
                let before = found_by_search(config, name, found, before);
                return step(name, Outcome::Chase(before, target));
            }
            Outcome::Elsewhere => {}
        }
    }
    if others.is_empty() {
        return Step::Done(missing);
    }
    Step::Ask(Pending {
        question: name.clone(),
        names: others,
        purpose: Purpose::Search(missing),
    })
}

fn step(name: &Name, outcome: Outcome) -> Step {
    match outcome {
        Outcome::Answer(answer) => Step::Done(answer),
        Outcome::Chase(before, target) => Step::Ask(Pending {
            question: name.clone(),
            names: vec![target],
            purpose: Purpose::Alias(before),
        }),
        Outcome::Elsewhere => Step::Ask(Pending {
            question: name.clone(),
            names: vec![name.clone()],
            purpose: Purpose::Same,
        }),
    }
}

/// An answer for `found` as one for `question`: an alias leads from one to the
/// other, as resolvers expect whose question's name is not the answer's.
pub(crate) fn found_by_search(
    config: &Config,
    question: &Name,
    found: Name,
    mut answer: Answer,
) -> Answer {
    let alias = RData::CNAME(CNAME(found.clone()));
    let ttl = answer
        .answers
        .iter()
        .map(|record| record.ttl)
        .min()
        .unwrap_or(config.ttl);
    answer
        .answers
        .insert(0, Record::from_rdata(question.clone(), ttl, alias));
    answer.reason = Reason::Search {
        found,
        because: Box::new(answer.reason),
    };
    answer
}
