//! Answers given lately, ready to be sent again.
//!
//! The same few names are asked for again and again. A question that differs
//! from an earlier one only in its id and in the case of its letters gets the same
//! bytes with those put in: no parsing, no lookup, no encoding. What depends on who
//! asks is kept for those who are alike ([`Scope`]), what came from upstream servers
//! for as long as it lives, with its times to live counted down. Nothing is used
//! after a change of what it was made from ([`Basis`]); other changes do not matter.

use std::collections::HashMap;
use std::time::Instant;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::basis::{Basis, Changes};

/// Bytes of a message's header.
const HEADER: usize = 12;
/// Bytes of type and class after a question's name.
const TYPE_AND_CLASS: usize = 4;
/// Types of records.
const A: u16 = 1;
const AAAA: u16 = 28;
const OPT: u16 = 41;
/// Bytes of an OPT record without options (RFC 6891 6.1.2).
const PLAIN_OPT: usize = 11;
/// Stands in keys before what stands for the client.
const CLIENT: u8 = 0xff;
/// Answers kept in each of two generations, by all threads together; with the
/// longest ones some megabytes.
pub(super) const KEPT: usize = 16384;

/// Who else may get an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Everybody.
    All,
    /// Clients whose search lists are alike.
    Class,
}

/// What is known of an answer beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct About {
    /// The type asked for.
    pub(super) kind: RecordType,
    /// The response code.
    pub(super) code: ResponseCode,
    /// Who else may get it.
    pub(super) scope: Scope,
    /// It came from the cache and lives until then.
    pub(super) until: Option<Instant>,
    /// Answers in the cache it was made of: those that say that something is
    /// there, and those that say that it is not.
    pub(super) from_cache: (u8, u8),
    /// Whether a search list was walked.
    pub(super) completed: bool,
}

/// The answers of one thread.
#[derive(Debug)]
pub(super) struct Hot {
    /// How many are kept in a generation.
    kept: usize,
    /// Those asked for since the older ones became the older ones.
    young: HashMap<Box<[u8]>, Ready>,
    old: HashMap<Box<[u8]>, Ready>,
    /// The question looked at last: the scope, all of it but its id with its name
    /// in lower case, and what stands for the client.
    key: Vec<u8>,
    /// Where in `key` the client begins.
    client: usize,
    /// Where its name ends.
    name_end: usize,
}

#[derive(Debug)]
struct Ready {
    bytes: Box<[u8]>,
    about: About,
    basis: Basis,
    /// Where its several addresses are, and the length of each.
    addresses: Option<Addresses>,
    /// When it was made, and where its times to live are.
    made: Instant,
    lives: Box<[u16]>,
}

#[derive(Clone, Copy, Debug)]
struct Addresses {
    start: usize,
    length: usize,
    count: usize,
}

impl Hot {
    /// None yet, and in each of two generations at most `kept`.
    pub(super) fn new(kept: usize) -> Self {
        Self {
            kept,
            young: HashMap::new(),
            old: HashMap::new(),
            key: Vec::new(),
            client: 0,
            name_end: 0,
        }
    }

    /// Appends the answer to a question to `out`, if it was given to the like of
    /// it and still holds. `client` appends what stands for the client's search
    /// list.
    pub(super) fn find(
        &mut self,
        changes: &Changes,
        question: &[u8],
        now: Instant,
        client: impl FnOnce(&mut Vec<u8>),
        out: &mut Vec<u8>,
    ) -> Option<About> {
        self.key.clear();
        self.name_end = name_end(question)?;
        self.key.push(0);
        self.key.extend_from_slice(&question[2..]);
        // The lengths of labels are no letters.
        self.key[HEADER - 1..self.name_end - 1].make_ascii_lowercase();
        self.client = self.key.len();
        if !self.look_up() {
            self.key[0] = 1;
            self.key.push(CLIENT);
            client(&mut self.key);
            if !self.look_up() {
                return None;
            }
        }
        let ready = self.young.get(self.key.as_slice())?;
        if ready.about.until.is_some_and(|until| until <= now) || !changes.hold(&ready.basis) {
            return None;
        }
        let start = out.len();
        out.extend_from_slice(&ready.bytes);
        let reply = &mut out[start..];
        reply[..2].copy_from_slice(&question[..2]);
        reply[HEADER..self.name_end].copy_from_slice(&question[HEADER..self.name_end]);
        if ready.about.until.is_some() {
            let age = now.saturating_duration_since(ready.made).as_secs();
            if let Ok(age @ 1..) = u32::try_from(age) {
                for place in &ready.lives {
                    let place = usize::from(*place);
                    if let Some((four, _)) = reply[place..].split_first_chunk_mut::<4>() {
                        *four = u32::from_be_bytes(*four).saturating_sub(age).to_be_bytes();
                    }
                }
            }
        }
        if let Some(Addresses {
            start,
            length,
            count,
        }) = ready.addresses
        {
            // Another comes first each time: the id is random.
            let by = usize::from(u16::from_be_bytes([question[0], question[1]])) % count;
            reply[start..start + length * count].rotate_left(by * length);
        }
        Some(ready.about)
    }

    /// Whether there is an answer for the key, which is among the young ones then.
    fn look_up(&mut self) -> bool {
        if self.young.contains_key(self.key.as_slice()) {
            return true;
        }
        let Some((key, ready)) = self.old.remove_entry(self.key.as_slice()) else {
            return false;
        };
        self.young.insert(key, ready);
        true
    }

    /// Keeps the answer just made to the question that [`find`](Self::find) did not
    /// find.
    pub(super) fn keep(&mut self, reply: &[u8], about: About, basis: Basis, now: Instant) {
        if self.key.is_empty() {
            return;
        }
        let Some((records, answers)) = records(reply, self.name_end) else {
            return;
        };
        let lives: Vec<u16> = records
            .iter()
            // What stands there in OPT is none.
            .filter(|record| record.kind != OPT)
            .filter_map(|record| u16::try_from(record.lives).ok())
            .collect();
        match about.scope {
            Scope::All => {
                self.key.truncate(self.client);
                self.key[0] = 0;
            }
            Scope::Class if self.key.len() > self.client => {}
            // The one there was, whose time is over, was for all.
            Scope::Class => return,
        }
        if self.young.len() >= self.kept {
            self.old = std::mem::take(&mut self.young);
        }
        let ready = Ready {
            bytes: reply.into(),
            about,
            basis,
            addresses: addresses(reply, &records[..answers]),
            made: now,
            lives: lives.into(),
        };
        self.young.insert(self.key.as_slice().into(), ready);
    }
}

/// Where a plain question's name ends: one question, and nothing after it but EDNS
/// without options, which differ from one message to the next.
fn name_end(question: &[u8]) -> Option<usize> {
    let [0, 1, 0, 0, 0, 0, 0, additional @ 0..=1] = *question.get(4..HEADER)? else {
        return None;
    };
    let mut end = HEADER;
    loop {
        match question.get(end)? {
            0 => break,
            length @ 1..=63 => end += usize::from(*length) + 1,
            _ => return None,
        }
    }
    end += 1;
    let rest = question.get(end + TYPE_AND_CLASS..)?;
    match (additional, rest) {
        (0, []) => Some(end),
        // The root, type 41, and at the end a length of zero.
        (1, [0, 0, 41, .., 0, 0]) if rest.len() == PLAIN_OPT => Some(end),
        _ => None,
    }
}

/// A record of a reply.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    /// Its type.
    kind: u16,
    /// Where its time to live is.
    lives: usize,
    end: usize,
}

/// The records of a reply (RFC 1035 4.1.3), and how many of them are answers.
/// `None` for what cannot be read.
fn records(reply: &[u8], name_end: usize) -> Option<(Vec<Place>, usize)> {
    let number = |at: usize| Some(u16::from_be_bytes([*reply.get(at)?, *reply.get(at + 1)?]));
    let counts = [number(6)?, number(8)?, number(10)?].map(usize::from);
    let mut at = name_end + TYPE_AND_CLASS;
    let mut places = Vec::new();
    for _ in 0..counts.iter().sum() {
        let start = at;
        loop {
            match *reply.get(at)? {
                0 => {
                    at += 1;
                    break;
                }
                length @ 1..=63 => at += usize::from(length) + 1,
                _ => {
                    at += 2;
                    break;
                }
            }
        }
        let end = at + 10 + usize::from(number(at + 8)?);
        places.push(Place {
            start,
            kind: number(at)?,
            lives: at + 4,
            end,
        });
        at = end;
    }
    (at == reply.len()).then_some((places, counts[0]))
}

/// The addresses that can change places: those at the end of the answers that
/// differ in nothing but the address.
fn addresses(reply: &[u8], answers: &[Place]) -> Option<Addresses> {
    let last = answers
        .last()
        .filter(|last| [A, AAAA].contains(&last.kind))?;
    let length = last.end - last.start;
    let head = last.lives + 6 - last.start;
    let alike = |place: &&Place| {
        place.end - place.start == length
            && reply[place.start..place.start + head] == reply[last.start..last.start + head]
    };
    let count = answers.iter().rev().take_while(alike).count();
    Some(Addresses {
        start: last.end - length * count,
        length,
        count,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::basis::View;
    use crate::zone::Zone;

    const ABOUT: About = About {
        kind: RecordType::A,
        code: ResponseCode::NoError,
        scope: Scope::All,
        until: None,
        from_cache: (0, 0),
        completed: false,
    };

    /// Kept in a generation.
    const MANY: usize = 1000;

    fn service(namespace: &str, name: &str) -> crate::model::Service {
        crate::model::Service {
            key: crate::model::ServiceKey::new(namespace, name),
            addressing: crate::model::Addressing::Headless,
            ports: Vec::new(),
        }
    }

    fn question(id: u16, name: &str, kind: u8) -> Vec<u8> {
        let mut bytes = id.to_be_bytes().to_vec();
        bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in name.split('.') {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(label.bytes());
        }
        bytes.extend([0, 0, kind, 0, 1]);
        bytes
    }

    fn with_edns(question: &[u8], options: &[u8]) -> Vec<u8> {
        let mut bytes = question.to_vec();
        bytes[11] = 1;
        bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0]);
        bytes.push(u8::try_from(options.len()).unwrap());
        bytes.extend(options);
        bytes
    }

    fn reply(question: &[u8], addresses: &[u8], ttl: u8) -> Vec<u8> {
        let mut bytes = question.to_vec();
        bytes[2] |= 0x80;
        bytes[7] = u8::try_from(addresses.len()).unwrap();
        for last in addresses {
            bytes.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, ttl, 0, 4, 10, 0, 0, *last]);
        }
        bytes
    }

    struct Given {
        hot: Hot,
        zone: Zone,
        now: Instant,
        client: &'static str,
    }

    impl Given {
        fn new() -> Self {
            Self {
                hot: Hot::new(MANY),
                zone: Zone::new(),
                now: Instant::now(),
                client: "",
            }
        }

        fn find(&mut self, question: &[u8]) -> Option<Vec<u8>> {
            let mut out = b"before".to_vec();
            let client = self.client.as_bytes();
            let client = |key: &mut Vec<u8>| key.extend_from_slice(client);
            self.hot
                .find(self.zone.changes(), question, self.now, client, &mut out)?;
            Some(out.split_off(6))
        }

        /// Keeps an answer that says whether there is a Service `default/web`.
        fn keep(&mut self, question: &[u8], reply: &[u8], about: About) {
            assert_eq!(self.find(question), None);
            let view = View::new(&self.zone);
            assert!(view.service("default", "web").is_none());
            self.hot.keep(reply, about, view.basis(), self.now);
        }
    }

    #[test]
    fn an_answer_comes_back_with_the_id_and_letters_of_the_new_question() {
        let mut given = Given::new();
        let first = question(1, "web.default", 1);
        given.keep(&first, &reply(&first, &[9], 5), ABOUT);
        let second = question(0x0203, "WEB.Default", 1);
        assert_eq!(given.find(&second), Some(reply(&second, &[9], 5)));
        assert_eq!(given.find(&question(1, "web.default", 28)), None);
        assert_eq!(given.find(&question(1, "web.defaulT2", 1)), None);
    }

    #[test]
    fn after_a_change_of_what_it_was_made_from_nothing_old_is_given() {
        let mut given = Given::new();
        let question = question(1, "web", 1);
        given.keep(&question, &reply(&question, &[9], 5), ABOUT);
        given.zone.add_namespace("other");
        given.zone.set_service(service("default", "other"));
        assert!(given.find(&question).is_some(), "others do not matter");
        given.zone.set_service(service("default", "web"));
        assert_eq!(given.find(&question), None);
    }

    #[test]
    fn what_depends_on_the_client_is_for_its_like() {
        let mut given = Given::new();
        let question = question(1, "www.default", 1);
        let about = About {
            scope: Scope::Class,
            ..ABOUT
        };
        given.client = "one";
        given.keep(&question, &reply(&question, &[1], 5), about);
        given.client = "two";
        given.keep(&question, &reply(&question, &[2], 5), about);
        for (client, address) in [("one", 1), ("two", 2)] {
            given.client = client;
            let answer = Some(reply(&question, &[address], 5));
            assert_eq!(given.find(&question), answer);
        }
        given.client = "three";
        assert_eq!(given.find(&question), None);
    }

    #[test]
    fn what_came_from_elsewhere_grows_old_and_ends() {
        let mut given = Given::new();
        let question = with_edns(&question(1, "www.example", 1), &[]);
        let mut whole = reply(&question[..question.len() - PLAIN_OPT], &[1, 2], 30);
        whole[11] = 1;
        whole.extend([0, 0, 41, 4, 208, 9, 9, 9, 9, 0, 0]);
        let about = About {
            until: Some(given.now + Duration::from_secs(20)),
            ..ABOUT
        };
        given.keep(&question, &whole, about);
        given.now += Duration::from_millis(3900);
        let aged = given.find(&question).expect("kept");
        let end = whole.len() - PLAIN_OPT;
        assert_eq!((aged[end - 7], aged[end - 23]), (27, 27));
        assert_eq!(aged[end..], whole[end..], "OPT has no time to live");
        given.now += Duration::from_secs(17);
        assert_eq!(given.find(&question), None);
    }

    #[test]
    fn several_addresses_take_turns() {
        let mut given = Given::new();
        let first = question(0, "db", 1);
        given.keep(&first, &reply(&first, &[1, 2, 3], 5), ABOUT);
        for (id, order) in [(0, [1, 2, 3]), (1, [2, 3, 1]), (5, [3, 1, 2])] {
            let question = question(id, "db", 1);
            assert_eq!(given.find(&question), Some(reply(&question, &order, 5)));
        }
    }

    #[test]
    fn addresses_take_turns_behind_an_alias_and_absence_has_none() {
        let mut given = Given::new();
        let first = question(0, "db", 1);
        let with_alias = |question: &[u8], order: &[u8]| {
            let alias = [0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 5, 0, 2, 0xc0, 12];
            let mut bytes = reply(question, order, 5);
            bytes.splice(question.len()..question.len(), alias);
            bytes[7] += 1;
            bytes
        };
        given.keep(&first, &with_alias(&first, &[1, 2]), ABOUT);
        let second = question(1, "db", 1);
        assert_eq!(given.find(&second), Some(with_alias(&second, &[2, 1])));
        let none = question(0, "none", 1);
        given.keep(&none, &reply(&none, &[], 5), ABOUT);
        assert_eq!(given.find(&none), Some(reply(&none, &[], 5)));
    }

    #[test]
    fn what_is_no_plain_question_is_not_for_here() {
        let mut given = Given::new();
        let plain = question(1, "web", 1);
        let mut others: Vec<Vec<u8>> = (0..plain.len()).map(|n| plain[..n].to_vec()).collect();
        others.push(vec![0xff; 600]);
        others.push([&plain[..], &[0]].concat());
        let mut compressed = plain.clone();
        compressed[12] = 0xc0;
        others.push(compressed);
        // A cookie is another each time.
        others.push(with_edns(&plain, &[0, 10, 0, 2, 1, 2]));
        for question in others {
            given.keep(&question, &reply(&plain, &[9], 5), ABOUT);
            assert_eq!(given.find(&question), None, "{question:?}");
        }
    }

    #[test]
    fn memory_is_bounded_and_what_is_asked_for_stays() {
        let mut given = Given::new();
        let wanted = question(1, "wanted", 1);
        given.keep(&wanted, &reply(&wanted, &[9], 5), ABOUT);
        for n in 0..5 * MANY {
            let question = question(1, &format!("n{n}"), 1);
            given.keep(&question, &reply(&question, &[9], 5), ABOUT);
            if n % 100 == 0 {
                assert!(given.find(&wanted).is_some(), "{n}");
            }
        }
        assert!(given.hot.young.len() + given.hot.old.len() <= 2 * MANY);
    }
}
