//! Fitting a mixture of experts to machines of several memories.

use std::path::{Path, PathBuf};

use halfbyte_quantize::{
    budget::{self, KvType, Run},
    fit::{Answer, Basis, Fit, Wish, fit},
    placement::Place,
    plan::Container,
    target::{Device, DeviceKind, Engine, EngineKind, Target},
};

const MIB: u64 = 1 << 20;
/// What tensors are aligned to.
const PAGE: u64 = 4096;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/tiny-deepseek")
}

fn device(kind: DeviceKind, usable: u64) -> Device {
    let name = kind.name().to_owned();
    Device { name, pci: None, kind, memory: usable, usable, bandwidth: None, basis: Default::default() }
}

/// A machine of devices with so many bytes, and of a host.
fn machine(devices: &[u64], host: Option<u64>) -> Wish {
    let formats = kernels::table::GGUF.to_vec();
    let engine = Engine {
        name: "llama.cpp".to_owned(),
        kind: EngineKind::LlamaCpp(None),
        formats,
        sources: Vec::new(),
    };
    let target = Target {
        name: "machine".to_owned(),
        description: String::new(),
        devices: devices.iter().map(|&usable| device(DeviceKind::Card, usable)).collect(),
        host: host.map(|usable| device(DeviceKind::Host, usable)),
        engines: vec![engine],
        page: PAGE,
        notes: Vec::new(),
    };
    let run = Run { engine: budget::Engine::LlamaCpp, context: 512, parallel: 1, kv: KvType::F16 };
    Wish {
        target: Some(target),
        run,
        container: Container::Gguf,
        max_size: None,
        shard_size: None,
        basis: Basis::Expected,
        calibration: None,
    }
}

fn planned(wish: &Wish) -> Fit {
    match fit(&model().into(), Path::new("out.gguf"), wish).expect("it can be planned") {
        Answer::Fits(fit) => *fit,
        Answer::Short(short) => panic!("{short:?}"),
    }
}

/// What every memory holds besides weights, on a machine of that shape with plenty of room.
fn besides(devices: usize, host: bool) -> u64 {
    let plenty = planned(&machine(&vec![1 << 40; devices], host.then_some(1 << 40)));
    let share = &plenty.shares[0];
    share.budget.cache + share.budget.buffer_bytes().high
}

/// No memory is overfull, files end where another one begins, and every tensor is counted.
fn holds(fit: &Fit) {
    for share in &fit.shares {
        assert!(share.budget.total().high <= share.usable, "{share:?}");
    }
    assert_eq!(fit.options.shard_after, fit.placement.boundaries());
    assert_eq!(fit.job.layout.files.len(), fit.placement.boundaries().len() + 1);
    // A host that is not part of the target keeps the embedding all the same.
    let counts = |place| place != Place::Host || fit.shares.iter().any(|share| share.name == "host memory");
    let lie = fit.job.outputs.iter().enumerate().filter(|(_, output)| counts(fit.placement.of(output)));
    let tensors: u64 = lie.map(|(index, _)| fit.job.tensor_bytes(index).next_multiple_of(PAGE)).sum();
    let weights: u64 = fit.shares.iter().map(|share| share.budget.weights).sum();
    assert_eq!(weights, tensors);
}

#[test]
fn experts_of_the_first_layers_lie_beside_the_card() {
    let fit = planned(&machine(&[besides(1, true) + 8 * MIB], Some(8 * MIB)));
    holds(&fit);
    assert!(fit.placement.layers.iter().all(|&place| place == Place::Device(0)));
    let host = fit.placement.experts.iter().filter(|&&place| place == Place::Host).count();
    assert!(host > 1 && host < fit.placement.experts.len(), "{:?}", fit.placement);
    assert!(fit.placement.experts[..host].iter().all(|&place| place == Place::Host));
    assert_eq!(fit.placement.boundaries(), [host as u32 - 1]);
    let flags = fit.flags.join(" ");
    assert_eq!(flags, format!("-ngl 99 --n-cpu-moe {host} -c 512"));
}

#[test]
fn two_devices_share_the_layers() {
    let each = besides(2, false) + 6 * MIB;
    let fit = planned(&machine(&[each, each], None));
    holds(&fit);
    let first = fit.placement.layers.iter().filter(|&&place| place == Place::Device(0)).count();
    let both: Vec<Place> = (0..4).map(|layer| Place::Device(usize::from(layer >= first))).collect();
    assert!((1..4).contains(&first) && fit.placement.layers == both, "{:?}", fit.placement);
    assert_eq!(fit.flags.join(" "), format!("-ngl 99 -ts {first},{} -c 512", 4 - first));
    // In 16 bits the weights take 26 MiB.
    assert!(fit.job.bits_per_weight() < 7.5, "{}", fit.job.bits_per_weight());
}

#[test]
fn what_the_buffers_lack_counts() {
    let lacks = |usable| match fit(&model().into(), Path::new("out.gguf"), &machine(&[usable], None)) {
        Ok(Answer::Short(short)) => short.missing,
        _ => panic!("it does not fit {usable} bytes"),
    };
    assert_eq!(lacks(1 << 20) - lacks(3 << 20), 2 << 20);
}

/// Cards of so many bytes on which vLLM runs.
fn cards(devices: &[u64]) -> Wish {
    let mut wish = machine(devices, Some(1 << 40));
    let target = wish.target.as_mut().expect("target");
    target.engines[0].kind = EngineKind::Vllm;
    target.engines[0].formats = halfbyte_quantize::target::marlin();
    Wish {
        container: Container::CompressedTensors,
        run: Run { engine: budget::Engine::Vllm, ..wish.run },
        ..wish
    }
}

#[test]
fn vllm_divides_among_cards_and_leaves_the_host_alone() {
    let one = planned(&cards(&[1 << 40]));
    let two = planned(&cards(&[1 << 40; 2]));
    assert_eq!((one.shares.len(), two.shares.len()), (1, 2));
    assert!(two.job.outputs.iter().all(|output| two.placement.of(output) == Place::Everywhere));
    assert!(two.flags.ends_with(&["--tensor-parallel-size".to_owned(), "2".to_owned()]), "{:?}", two.flags);
    let weights = |fit: &Fit| fit.shares[0].budget.weights;
    // Norms, routers and the latents' down-projections are on both.
    assert!((0.5..0.6).contains(&(weights(&two) as f64 / weights(&one) as f64)));
    assert_eq!(two.shares[0].budget.cache, one.shares[0].budget.cache, "latents");

    let error =
        fit(&model().into(), Path::new("out"), &cards(&[1 << 40; 3])).err().expect("4 heads").to_string();
    assert!(error.contains("4 heads among 3 cards"), "{error}");
}

#[test]
fn vllm_takes_the_best_scheme_that_fits_its_share() {
    let formats = |fit: &Fit| {
        let names = fit.job.outputs.iter().zip(&fit.job.formats);
        names
            .filter(|(output, _)| output.quantizable)
            .map(|(_, format)| format.name)
            .next()
            .expect("a linear")
    };
    let roomy = planned(&cards(&[1 << 40]));
    assert_eq!(formats(&roomy), "bf16");
    let most = Some(roomy.job.file_bytes() - 1);
    let tight = planned(&Wish { max_size: most, ..cards(&[2 << 30]) });
    assert_eq!(formats(&tight), "w4a16-g32", "16 bits are a little too much");
    for share in &tight.shares {
        assert!(share.budget.total().high <= share.usable, "{share:?}");
    }
    match fit(&model().into(), Path::new("out"), &cards(&[64 * MIB])).expect("planned") {
        Answer::Short(short) => assert!(short.missing > 0 && short.smallest > 0, "{short:?}"),
        Answer::Fits(_) => panic!("the driver takes more"),
    }
}
