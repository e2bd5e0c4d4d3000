//! How fast a placed model will generate, estimated: a token waits until all weights that it needs were read from memory, and the
//! cache with them.

use std::ops::Range;

use formats::{OutputTensor, output::Class};

use crate::placement::{Place, Placement};

/// What engines were seen to reach of the memory's bandwidth: DeepSeek-R1 Q4_K_M on an M3 Ultra ran at 20.2 tokens/s, 54 % of the
/// 37 that its 819 GB/s allow.
pub const SHARE: Range<f64> = 0.50..0.55;

/// What part of a mixture's experts a token uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Experts a token is sent to.
    pub used: u64,
    /// Experts of a layer.
    pub count: u64,
}

/// Bytes of weights that one token reads from each device, and from the host's memory (the last).
pub fn bytes_per_token(
    outputs: &[OutputTensor],
    bytes: &[u64],
    experts: Option<Experts>,
    placement: &Placement,
    devices: usize,
) -> Vec<u64> {
    let tied = !outputs.iter().any(|output| output.class == Class::Output);
    let mut read = vec![0u64; devices + 1];
    let mut add = |place: Place, bytes: u64| match place {
        Place::Device(device) => read[device] += bytes,
        Place::Host => read[devices] += bytes,
        // All read at the same time: the first stands for them.
        Place::Everywhere => read[0] += bytes / devices.max(1) as u64,
    };
    for (output, &bytes) in outputs.iter().zip(bytes) {
        match (output.class, experts) {
            // One row; as the head, all of it.
            (Class::Embedding, _) => {
                add(placement.of(output), bytes / output.rows().max(1));
                if tied {
                    add(placement.output, bytes);
                }
            }
            (class, Some(Experts { used, count })) if class.is_routed_expert() => {
                let share = u128::from(bytes) * u128::from(used.min(count)) / u128::from(count.max(1));
                add(placement.of(output), share as u64);
            }
            _ => add(placement.of(output), bytes),
        }
    }
    read
}

/// Tokens per second of one sequence: from and to; `None` if the bandwidth of what is read from is not known.
pub fn tokens_per_second(read: &[u64], bandwidth: &[Option<u64>]) -> Option<Range<f64>> {
    let seconds = read.iter().zip(bandwidth).filter(|(bytes, _)| **bytes > 0);
    let seconds: f64 =
        seconds.map(|(&bytes, &bandwidth)| Some(bytes as f64 / bandwidth? as f64)).sum::<Option<f64>>()?;
    (seconds > 0.0).then(|| SHARE.start / seconds..SHARE.end / seconds)
}

#[cfg(test)]
mod tests {
    use formats::Content;

    use super::*;

    fn tensor(class: Class, layer: Option<u32>) -> OutputTensor {
        let content = Content::Values(Vec::new());
        OutputTensor { name: String::new(), shape: vec![100, 32], class, layer, quantizable: true, content }
    }

    fn placement() -> Placement {
        Placement {
            input: Place::Host,
            layers: vec![Place::Device(0)],
            experts: vec![Place::Host],
            output: Place::Device(0),
        }
    }

    #[test]
    fn a_token_reads_one_row_of_the_embedding_and_the_experts_it_uses() {
        let outputs = [
            tensor(Class::Embedding, None),
            tensor(Class::AttnQ, Some(0)),
            tensor(Class::ExpertDown, Some(0)),
            tensor(Class::Output, None),
        ];
        let experts = Some(Experts { used: 2, count: 8 });
        let read = bytes_per_token(&outputs, &[1000, 50, 800, 1000], experts, &placement(), 1);
        assert_eq!(read, [1050, 210]);
        // Without a head of its own the embedding is read as one.
        let read = bytes_per_token(&outputs[..2], &[1000, 50], None, &placement(), 1);
        assert_eq!(read, [1050, 10]);
    }

    #[test]
    fn deepseek_r1_on_an_m3_ultra_is_predicted_as_it_was_measured() {
        let speed = tokens_per_second(&[22_100_000_000, 0], &[Some(819_000_000_000), None]).expect("known");
        assert!(speed.start < 20.2 && 20.2 < speed.end, "{speed:?}");
    }

    #[test]
    fn nothing_is_said_where_a_bandwidth_is_unknown() {
        assert_eq!(tokens_per_second(&[100, 1], &[Some(10), None]), None);
    }
}
