//! RFC 1035: what is answered to which message.

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata::A};
use podwire_dns::Answer;
use podwire_dns::message::{Unusable, plain, read, write};

use crate::world::name;

fn question(text: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(text).expect("a name"), kind));
    message
}

fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().expect("it can be written")
}

fn code_of(reply: Result<podwire_dns::message::Request, Unusable>) -> ResponseCode {
    match reply {
        Err(Unusable::Reply(reply)) => {
            let reply = Message::from_vec(&reply).expect("a message");
            assert_eq!(reply.metadata.id, 0x1234);
            assert_eq!(reply.metadata.message_type, MessageType::Response);
            reply.metadata.response_code
        }
        other => panic!("a reply: {other:?}"),
    }
}

#[test]
fn letters_come_back_as_they_were_sent() {
    let request = read(&bytes(&question(
        "wEb.DeFault.svc.Cluster.LOCAL.",
        RecordType::A,
    )));
    let request = request.expect("a question");
    let owner = request.query.name().clone();
    let data = RData::A(A::new(10, 96, 0, 20));
    let answer = Answer {
        answers: vec![Record::from_rdata(owner, 5, data)],
        authoritative: true,
        ..plain(ResponseCode::NoError)
    };
    let reply = write(&request, &answer, 512);
    let text = b"\x03wEb\x07DeFault";
    assert!(reply.windows(text.len()).any(|window| window == text));
    let reply = Message::from_vec(&reply).expect("a message");
    assert!(reply.metadata.authoritative && reply.metadata.recursion_desired);
    assert!(reply.metadata.recursion_available);
    assert_eq!(reply.answers.len(), 1);
    assert!(reply.edns.is_none(), "none was asked with");
}

#[test]
fn other_operations_are_not_implemented() {
    for code in [
        OpCode::Notify,
        OpCode::Update,
        OpCode::Status,
        OpCode::Unknown(9),
    ] {
        let mut message = question("a.", RecordType::A);
        message.metadata.op_code = code;
        assert_eq!(code_of(read(&bytes(&message))), ResponseCode::NotImp);
    }
}

#[test]
fn what_is_no_single_question_is_a_format_error() {
    let mut two = question("a.", RecordType::A);
    two.add_query(Query::query(name("b"), RecordType::A));
    assert_eq!(code_of(read(&bytes(&two))), ResponseCode::FormErr);
    let mut none = question("a.", RecordType::A);
    none.queries.clear();
    assert_eq!(code_of(read(&bytes(&none))), ResponseCode::FormErr);
    let whole = bytes(&question("web.default.", RecordType::A));
    for length in 12..whole.len() {
        assert_eq!(
            code_of(read(&whole[..length])),
            ResponseCode::FormErr,
            "{length}"
        );
    }
}

#[test]
fn compression_that_goes_round_is_a_format_error() {
    // A header, then a name that is a pointer to itself.
    let mut message = bytes(&question("a.", RecordType::A))[..12].to_vec();
    message.extend([0xc0, 0x0c, 0, 1, 0, 1]);
    assert_eq!(code_of(read(&message)), ResponseCode::FormErr);
    // And one that points beyond the end.
    message[13] = 0xff;
    assert_eq!(code_of(read(&message)), ResponseCode::FormErr);
}

#[test]
fn answers_and_scraps_are_met_with_silence() {
    let mut answer = question("a.", RecordType::A);
    answer.metadata.message_type = MessageType::Response;
    assert_eq!(read(&bytes(&answer)).unwrap_err(), Unusable::Silence);
    for length in 0..12 {
        assert_eq!(read(&vec![0; length]).unwrap_err(), Unusable::Silence);
    }
}

#[test]
fn the_first_of_several_addresses_changes_from_question_to_question() {
    let mut first = std::collections::HashSet::new();
    for id in 0..100 {
        let mut message = question("db.", RecordType::A);
        message.metadata.id = id;
        let request = read(&bytes(&message)).expect("a question");
        let answers = (1..=3)
            .map(|n| Record::from_rdata(name("db"), 5, RData::A(A::new(10, 0, 0, n))))
            .collect();
        let answer = Answer {
            answers,
            ..plain(ResponseCode::NoError)
        };
        let reply = Message::from_vec(&write(&request, &answer, 512)).expect("a message");
        assert_eq!(reply.answers.len(), 3);
        first.insert(reply.answers[0].data.to_string());
    }
    assert_eq!(first.len(), 3);
}
