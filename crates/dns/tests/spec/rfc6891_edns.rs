//! RFC 6891: extension mechanisms, and sizes of answers.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType, rdata::A};
use podwire_dns::Answer;
use podwire_dns::message::{LARGEST_DATAGRAM, Request, Unusable, plain, read, write};
use rstest::rstest;

use crate::world::name;

fn question(edns: Option<(u8, u16, bool)>) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(
        name("db.default.svc.cluster.local"),
        RecordType::A,
    ));
    message.edns = edns.map(|(version, payload, dnssec_ok)| {
        let mut edns = Edns::new();
        edns.set_version(version);
        edns.set_max_payload(payload);
        edns.set_dnssec_ok(dnssec_ok);
        edns
    });
    message.to_vec().expect("it can be written")
}

fn request(edns: Option<(u8, u16, bool)>) -> Request {
    read(&question(edns)).expect("a question")
}

fn answer(records: u8) -> Answer {
    Answer {
        answers: (0..records)
            .map(|n| {
                let data = RData::A(A::new(10, 200, 0, n));
                Record::from_rdata(name("db.default.svc.cluster.local"), 5, data)
            })
            .collect(),
        ..plain(ResponseCode::NoError)
    }
}

#[rstest]
#[case::none(None, 512)]
#[case::small(Some((0, 100, false)), 512)]
#[case::between(Some((0, 1000, false)), 1000)]
#[case::large(Some((0, 4096, false)), LARGEST_DATAGRAM)]
fn the_size_of_a_datagram_is_the_clients_within_reason(
    #[case] edns: Option<(u8, u16, bool)>,
    #[case] expected: u16,
) {
    assert_eq!(request(edns).datagram_size(), expected);
}

#[rstest]
#[case::plain(None)]
#[case::edns(Some((0, 1232, true)))]
fn an_answer_that_is_too_long_is_cut_and_says_so(#[case] edns: Option<(u8, u16, bool)>) {
    let request = request(edns);
    let limit = usize::from(request.datagram_size());
    let bytes = write(&request, &answer(200), limit);
    assert!(
        bytes.len() <= limit && bytes.len() > limit - 32,
        "{}",
        bytes.len()
    );
    let reply = Message::from_vec(&bytes).expect("a message");
    assert!(reply.metadata.truncation);
    assert!(reply.answers.len() > 20);
    assert_eq!(
        reply.edns.is_some(),
        edns.is_some(),
        "echoed though it is full"
    );
    let whole = Message::from_vec(&write(&request, &answer(200), 65535)).expect("a message");
    assert!(!whole.metadata.truncation && whole.answers.len() == 200);
}

#[test]
fn additional_records_are_left_out_before_an_answer_is_cut() {
    let request = request(None);
    let mut answer = answer(20);
    answer.additionals = (0..40)
        .map(|n| {
            let data = RData::A(A::new(10, 0, 0, n));
            Record::from_rdata(name(&format!("n{n}.example")), 5, data)
        })
        .collect();
    let reply = Message::from_vec(&write(&request, &answer, 512)).expect("a message");
    assert!(!reply.metadata.truncation);
    assert_eq!((reply.answers.len(), reply.additionals.len()), (20, 0));
}

#[test]
fn options_are_echoed_only_to_who_speaks_them() {
    let reply = |edns| {
        let request = request(edns);
        Message::from_vec(&write(&request, &answer(1), 512)).expect("a message")
    };
    assert!(reply(None).edns.is_none());
    let edns = reply(Some((0, 1232, true))).edns.expect("echoed");
    assert!(edns.flags().dnssec_ok);
    assert_eq!((edns.version(), edns.max_payload()), (0, LARGEST_DATAGRAM));
}

#[test]
fn a_version_there_is_not_is_refused_with_badvers() {
    let Err(Unusable::Reply(reply)) = read(&question(Some((1, 1232, false)))) else {
        panic!("a reply");
    };
    let reply = Message::from_vec(&reply).expect("a message");
    assert_eq!(reply.metadata.response_code.low(), 0);
    assert_eq!(reply.edns.expect("it carries the code").rcode_high(), 1);
}
