//! Courses of a direction: what is sent, and what is done to it.

use proptest::prelude::*;

use super::*;

/// Frame of a source.
#[derive(Clone, Debug)]
pub(super) struct SentFrame {
    pub(super) first: u8,
    pub(super) is_masked: bool,
    pub(super) payload: usize,
}

/// What is done to a direction after a part of its source's bytes has been sent.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Nothing,
    Ping,
    Close,
    GiveUp,
    /// The source sends a byte of urgent data.
    Urgent,
}

/// How a source ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Fin,
    Reset,
}

/// Course of a direction.
#[derive(Clone, Debug)]
pub(super) struct Course {
    pub(super) bytes: Vec<u8>,
    pub(super) policy: Policy,
    /// Pongs that are awaited.
    pub(super) pongs: usize,
    /// Bytes that are sent at a time, over and over.
    pub(super) writes: Vec<usize>,
    /// Bytes that the sink's peer reads at a time, over and over.
    pub(super) reads: Vec<usize>,
    pub(super) act: Act,
    /// Bytes of the source after which that is done.
    pub(super) act_at: usize,
    pub(super) end: End,
    /// The source is reached through a Unix socket.
    pub(super) is_unix: bool,
}

pub(super) fn to_bytes(frames: &[SentFrame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, SentFrame { first, is_masked, payload }) in frames.iter().enumerate() {
        let mask_bit = if *is_masked { 0x80 } else { 0 };
        bytes.push(*first);
        match payload {
            0..126 => bytes.push(mask_bit | *payload as u8),
            126..0x1_0000 => {
                bytes.push(mask_bit | 126);
                bytes.extend_from_slice(&(*payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask_bit | 127);
                bytes.extend_from_slice(&(*payload as u64).to_be_bytes());
            }
        }
        if *is_masked {
            bytes.extend_from_slice(&KEY);
        }
        if *first == 0x8a && *payload == OURS.len() {
            let ours = OURS.iter().zip(KEY.iter().cycle());
            bytes.extend(ours.map(|(byte, key)| byte ^ if *is_masked { *key } else { 0 }));
        } else {
            // A byte that no header of ours begins with, and that tells frames from each other.
            bytes.extend((0..*payload).map(|at| ((at / 7 + number) % 100) as u8));
        }
    }
    bytes
}

/// Lengths at which something changes.
fn lengths() -> impl Strategy<Value = usize> {
    let worth = WORTH_A_PIPE;
    prop_oneof![
        4 => 0_usize..20,
        2 => 100_usize..200,
        1 => 900_usize..1_100,
        4 => worth - 20..worth + 20,
        4 => Just(16 << 10),
        2 => READ - 20..READ + 20,
        1 => SCRATCH - 20..SCRATCH + 20,
        1 => PIPE_BYTES - 20..PIPE_BYTES + 20,
        1 => Just(700_000),
    ]
}

fn frames() -> impl Strategy<Value = Vec<SentFrame>> {
    let first = prop_oneof![
        6 => Just(0x82_u8),
        1 => Just(0x01),
        1 => Just(0x80),
        1 => Just(0x89),
        1 => Just(0x8a),
    ];
    let one = (first, any::<bool>(), lengths());
    // Runs of frames of one kind, since bulk is nothing else.
    let run = (one, prop_oneof![Just(1_usize), 2_usize..6, 20_usize..40]);
    // A Close that is far too large.
    let close = (Just(0x88), any::<bool>(), prop_oneof![Just(2), Just(100_000)]);
    (prop::collection::vec(run, 1..12), proptest::option::weighted(0.2, close)).prop_map(
        |(runs, close)| {
            const MOST: usize = 3 << 20;
            let runs = runs.into_iter().flat_map(|(one, count)| vec![one; count]);
            let mut total = 0;
            runs.take_while(|(_, _, payload)| {
                total += payload;
                total < MOST
            })
            .chain(close)
            .map(|(first, is_masked, payload)| SentFrame { first, is_masked, payload })
            .collect()
        },
    )
}

fn policies() -> impl Strategy<Value = Policy> {
    prop_oneof![
        4 => Just(Policy::default()),
        1 => Just(Policy { max_frame: Some(1 << 20), ..Policy::default() }),
        1 => Just(Policy { max_frame: Some(PIPE_BYTES as u64 - 1), ..Policy::default() }),
        1 => Just(Policy {
            max_frames_per_second: Some(16),
            rate_action: RateAction::Pause,
            ..Policy::default()
        }),
    ]
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![
        1 => 1_usize..20,
        1 => 1_000_usize..20_000,
        2 => 60_000_usize..300_000,
        2 => Just(1 << 20),
    ];
    // With one that comes to an end.
    prop::collection::vec(size, 0..6).prop_map(|sizes| [&sizes[..], &[200_000]].concat())
}

pub(super) fn courses() -> impl Strategy<Value = Course> {
    let act = prop_oneof![
        3 => Just(Act::Nothing),
        3 => Just(Act::Ping),
        3 => Just(Act::Close),
        1 => Just(Act::GiveUp),
        1 => Just(Act::Urgent),
    ];
    let end = prop_oneof![5 => Just(End::Fin), 1 => Just(End::Reset)];
    let cut = prop_oneof![Just(None), any::<prop::sample::Index>().prop_map(Some)];
    let places = (any::<prop::sample::Index>(), cut, any::<bool>());
    (frames(), policies(), 0_usize..3, sizes(), sizes(), (act, end), places).prop_map(
        |(frames, policy, pongs, writes, reads, (act, end), (act_at, cut, is_unix))| {
            let mut bytes = to_bytes(&frames);
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            let act_at = act_at.index(bytes.len() + 1);
            Course { bytes, policy, pongs, writes, reads, act, act_at, end, is_unix }
        },
    )
}
