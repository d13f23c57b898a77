//! Answers given lately, ready to be sent again.
//!
//! The same few names are asked for again and again. While the zone does not
//! change, a question that differs from an earlier one only in its id and in the
//! case of its letters gets the same bytes with those put in: no parsing, no
//! lookup, no encoding. Only answers of the zone that do not depend on who asks
//! are kept, and none is used after a change.

use std::collections::HashMap;

use hickory_proto::rr::RecordType;

/// Bytes of a message's header.
const HEADER: usize = 12;
/// Questions longer than this are rare enough.
const LONGEST: usize = 320;
/// Answers kept; with the longest ones some megabytes.
const KEPT: usize = 8192;

/// The answers of one thread.
#[derive(Debug, Default)]
pub(super) struct Hot {
    /// The zone they were made from.
    serial: u32,
    answers: HashMap<Box<[u8]>, Ready>,
    key: Vec<u8>,
    reply: Vec<u8>,
}

#[derive(Debug)]
struct Ready {
    bytes: Box<[u8]>,
    kind: RecordType,
    /// Where its several addresses are, and the length of each.
    addresses: Option<Addresses>,
}

#[derive(Clone, Copy, Debug)]
struct Addresses {
    start: usize,
    length: usize,
    count: usize,
}

impl Hot {
    /// The answer to a question, if it was given to the like of it since the zone
    /// changed last, and the type asked for.
    pub(super) fn find(&mut self, serial: u32, question: &[u8]) -> Option<(&[u8], RecordType)> {
        if serial != self.serial {
            self.answers.clear();
            self.serial = serial;
        }
        let name_end = self.read_key(question)?;
        let ready = self.answers.get(self.key.as_slice())?;
        self.reply.clear();
        self.reply.extend_from_slice(&ready.bytes);
        self.reply[..2].copy_from_slice(&question[..2]);
        self.reply[HEADER..name_end].copy_from_slice(&question[HEADER..name_end]);
        if let Some(Addresses {
            start,
            length,
            count,
        }) = ready.addresses
        {
            // Another comes first each time: the id is random.
            let by = usize::from(u16::from_be_bytes([question[0], question[1]])) % count;
            self.reply[start..start + length * count].rotate_left(by * length);
        }
        Some((&self.reply, ready.kind))
    }

    /// Keeps an answer that was just made, from the zone as it was at `serial`
    /// or later.
    pub(super) fn keep(&mut self, serial: u32, question: &[u8], reply: &[u8], kind: RecordType) {
        if serial != self.serial {
            return;
        }
        let Some(name_end) = self.read_key(question) else {
            return;
        };
        let Some(addresses) = addresses(reply, name_end) else {
            return;
        };
        if self.answers.len() >= KEPT {
            self.answers.clear();
        }
        let ready = Ready {
            bytes: reply.into(),
            kind,
            addresses,
        };
        self.answers.insert(self.key.as_slice().into(), ready);
    }

    /// Makes the key of a question: all of it but its id, its name in lower case.
    /// Returns where the name ends. `None`: this is no plain question.
    fn read_key(&mut self, question: &[u8]) -> Option<usize> {
        if question.len() > LONGEST || question.get(4..6)? != [0, 1] {
            return None;
        }
        let mut end = HEADER;
        loop {
            match question.get(end)? {
                0 => break,
                length @ 1..=63 => end += usize::from(*length) + 1,
                _ => return None,
            }
        }
        end += 1;
        self.key.clear();
        self.key.extend_from_slice(&question[2..]);
        // The lengths of labels are no letters.
        self.key[HEADER - 2..end - 2].make_ascii_lowercase();
        Some(end)
    }
}

/// Finds the addresses that can change places in a reply: `Some(None)` where there
/// is one answer, `None` where the answers are not all alike.
fn addresses(reply: &[u8], name_end: usize) -> Option<Option<Addresses>> {
    let count = usize::from(u16::from_be_bytes([*reply.get(6)?, *reply.get(7)?]));
    if count == 1 {
        return Some(None);
    }
    let start = name_end + 4;
    let first = reply.get(start..start + 12)?;
    // A pointer to the question's name, then the type (RFC 1035 3.2.1, 4.1.4).
    let length = match first {
        [0xc0, 0x0c, 0, 1, ..] => 16,
        [0xc0, 0x0c, 0, 28, ..] => 28,
        _ => return None,
    };
    let all = reply.get(start..start + length * count)?;
    all.chunks(length)
        .all(|record| record[..12] == *first)
        .then_some(Some(Addresses {
            start,
            length,
            count,
        }))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn reply(question: &[u8], addresses: &[u8]) -> Vec<u8> {
        let mut bytes = question.to_vec();
        bytes[2] |= 0x80;
        bytes[7] = u8::try_from(addresses.len()).unwrap();
        for last in addresses {
            bytes.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 0, 0, *last]);
        }
        bytes
    }

    #[test]
    fn an_answer_comes_back_with_the_id_and_letters_of_the_new_question() {
        let mut hot = Hot::default();
        let first = question(1, "web.default", 1);
        assert!(hot.find(7, &first).is_none());
        hot.keep(7, &first, &reply(&first, &[9]), RecordType::A);
        let second = question(0x0203, "WEB.Default", 1);
        let (bytes, kind) = hot.find(7, &second).expect("kept");
        assert_eq!(bytes, reply(&second, &[9]));
        assert_eq!(kind, RecordType::A);
        assert!(hot.find(7, &question(1, "web.default", 28)).is_none());
        assert!(hot.find(7, &question(1, "web.defaulT2", 1)).is_none());
    }

    #[test]
    fn after_a_change_nothing_old_is_given() {
        let mut hot = Hot::default();
        let question = question(1, "web", 1);
        hot.find(7, &question);
        hot.keep(7, &question, &reply(&question, &[9]), RecordType::A);
        assert!(hot.find(8, &question).is_none());
        // Made before the change was seen.
        hot.keep(7, &question, &reply(&question, &[9]), RecordType::A);
        assert!(hot.find(8, &question).is_none());
    }

    #[test]
    fn several_addresses_take_turns() {
        let mut hot = Hot::default();
        let first = question(0, "db", 1);
        hot.find(7, &first);
        hot.keep(7, &first, &reply(&first, &[1, 2, 3]), RecordType::A);
        for (id, order) in [(0, [1, 2, 3]), (1, [2, 3, 1]), (5, [3, 1, 2])] {
            let question = question(id, "db", 1);
            let (bytes, _) = hot.find(7, &question).expect("kept");
            assert_eq!(bytes, reply(&question, &order));
        }
    }

    #[test]
    fn what_is_no_plain_question_is_not_for_here() {
        let mut hot = Hot::default();
        for length in 0..20 {
            assert!(hot.find(0, &question(1, "web", 1)[..length]).is_none());
        }
        let mut compressed = question(1, "web", 1);
        compressed[12] = 0xc0;
        assert!(hot.find(0, &compressed).is_none());
        assert!(hot.find(0, &[0xff; 600]).is_none());
    }

    #[test]
    fn memory_is_bounded() {
        let mut hot = Hot::default();
        for n in 0..3 * KEPT {
            let question = question(1, &format!("n{n}"), 1);
            hot.find(0, &question);
            hot.keep(0, &question, &reply(&question, &[9]), RecordType::A);
        }
        assert!(hot.answers.len() <= KEPT);
    }
}
