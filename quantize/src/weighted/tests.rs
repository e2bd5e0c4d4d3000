use formats::{Part, output::Class};

use super::*;

fn importance(entries: &[(&str, usize, Vec<f32>, Vec<f32>)]) -> Weighted {
    let channels = |(name, columns, sums, counts): &(&str, usize, Vec<f32>, Vec<f32>)| {
        (name.to_string(), Channels { columns: *columns, sums: sums.clone(), counts: counts.clone() })
    };
    let tensors = entries.iter().map(channels).collect();
    let importance = Importance { tensors, ..Importance::default() };
    Weighted { path: "m.imatrix".into(), importance, sha256: String::new(), places: Vec::new() }
}

fn part(source: usize, columns: u64, rows: Range<u64>, map: Map) -> Part {
    Part { source: TensorId(source), columns, rows, map }
}

fn output(name: &str, shape: &[u64], parts: Vec<Part>) -> OutputTensor {
    OutputTensor {
        name: name.into(),
        shape: shape.to_vec(),
        class: Class::Other,
        layer: None,
        quantizable: true,
        content: Content::Parts(parts),
    }
}

#[test]
fn columns_weigh_1_on_average_and_never_nothing() {
    let linear = output("w", &[4, 2], vec![part(0, 2, 0..4, Map::Identity)]);
    let weights = |sums| {
        let all = importance(&[("w", 2, sums, vec![8.0])]).over_gguf(std::slice::from_ref(&linear));
        all.expect("weights").of(0, &linear)
    };
    let known =
        |row: [f32; 2]| Some(ColumnWeights { rows: 4, columns: 2, matrices: vec![Some(row.to_vec())] });
    assert_eq!(weights(vec![1.0, 3.0]), known([0.5, 1.5]));
    assert_eq!(weights(vec![0.0, 3.0]), known([1e-4, 2.0]));
    assert_eq!(weights(vec![0.0, f32::MAX]), known([1e-4, 2.0]));
    assert_eq!(weights(vec![0.0, 1e-43]), known([1e-4, 2.0]), "one of the smallest numbers");
    assert_eq!(weights(vec![0.0, 0.0]), None);
}

#[test]
fn rows_are_cut_where_an_expert_ends() {
    let experts = output("e", &[3, 4, 2], vec![part(0, 2, 0..12, Map::Identity)]);
    let all = importance(&[("e", 2, vec![1e9, 3e9, 2e9, 2e9, 0.0, 0.0], vec![1e9, 1e9, 0.0])]);
    let weights = all.over_gguf(std::slice::from_ref(&experts)).expect("fits").of(0, &experts).expect("some");
    let cut: Vec<_> = weights.cut(3..12).map(|(rows, row)| (rows, row.expect("known")[1])).collect();
    let rows: Vec<_> = cut.iter().map(|(rows, _)| rows.clone()).collect();
    assert_eq!(rows, [3..4, 4..8, 8..12]);
    for ((_, found), due) in cut.iter().zip([1.5, 1.0, 1.25]) {
        assert!((found - due).abs() < 1e-4, "{found} is not {due}");
    }
    assert_eq!(weights.cut(5..5).count(), 0);
}

#[test]
fn heads_may_share_a_count() {
    let heads = output("k", &[2, 4, 2], vec![part(0, 2, 0..8, Map::Identity)]);
    let all = importance(&[("k", 4, vec![1.0, 3.0, 4.0, 4.0], vec![5.0])]);
    let weights = all.over_gguf(std::slice::from_ref(&heads)).expect("fits").of(0, &heads).expect("some");
    assert_eq!(weights.matrices, [Some(vec![0.5, 1.5]), Some(vec![1.0, 1.0])]);
}

#[test]
fn a_wrong_length_names_both_numbers() {
    let linear = output("w", &[4, 2], vec![part(0, 2, 0..4, Map::Identity)]);
    let experts = output("w", &[3, 4, 2], vec![part(0, 2, 0..12, Map::Identity)]);
    for (output, entry, parts) in [
        (&linear, ("w", 3, vec![1.0; 3], vec![1.0]), ["w has 3 columns", "2 columns"]),
        (&experts, ("w", 2, vec![1.0; 4], vec![1.0; 2]), ["2 columns and 2 counts", "3 matrices"]),
        (&experts, ("w", 2, vec![1.0; 2], vec![1.0]), ["2 columns and 1 counts", "3 matrices"]),
    ] {
        let error = importance(&[entry]).over_gguf(std::slice::from_ref(output)).expect_err("refused");
        for part in parts.iter().chain(&["m.imatrix"]) {
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
    }
}

#[test]
fn mlx_tensors_are_found_by_the_rows_they_are_made_of() {
    let gguf = [
        output("attn_q", &[8, 2], vec![part(0, 2, 0..8, Map::InterleaveHalves)]),
        output("exps", &[2, 4, 2], vec![part(1, 2, 0..4, Map::Identity), part(2, 2, 0..4, Map::Identity)]),
        output("k_b", &[2, 2, 4], vec![part(3, 2, 0..4, Map::Transpose), part(3, 2, 8..12, Map::Transpose)]),
        output("v_b", &[2, 4, 2], vec![part(3, 2, 4..8, Map::Identity), part(3, 2, 12..16, Map::Identity)]),
        output("dealt", &[2, 4], vec![part(4, 4, 0..2, Map::DealColumns { groups: 2, width: 1 })]),
    ];
    let mlx = [
        output("q_proj", &[8, 2], vec![part(0, 2, 0..8, Map::Identity)]),
        output("switch", &[2, 4, 2], vec![part(2, 2, 0..4, Map::Identity), part(1, 2, 0..4, Map::Identity)]),
        output(
            "embed_q",
            &[2, 2, 4],
            vec![part(3, 2, 0..4, Map::Transpose), part(3, 2, 8..12, Map::Transpose)],
        ),
        output(
            "unembed",
            &[2, 4, 2],
            vec![part(3, 2, 4..8, Map::Identity), part(3, 2, 12..16, Map::Identity)],
        ),
        output("straight", &[2, 4], vec![part(4, 4, 0..2, Map::Identity)]),
        output("new", &[2, 4], vec![part(5, 4, 0..2, Map::Identity)]),
    ];
    let all = importance(&[
        ("attn_q", 2, vec![1.0, 3.0], vec![1.0]),
        ("exps", 2, vec![1.0; 4], vec![1.0; 2]),
        ("k_b", 8, vec![1.0; 8], vec![1.0]),
        ("v_b", 4, vec![1.0; 4], vec![1.0]),
        ("dealt", 4, vec![1.0; 4], vec![1.0]),
    ]);
    let weighted = all.over_checkpoint(&mlx, &gguf).expect("fits");
    let found: Vec<Vec<_>> = weighted
        .places
        .iter()
        .map(|places| places.iter().flatten().map(|place| (place.tensor.as_str(), place.matrix)).collect())
        .collect();
    assert_eq!(
        found,
        [
            vec![("attn_q", 0)],
            vec![("exps", 1), ("exps", 0)],
            vec![("k_b", 0), ("k_b", 1)],
            vec![("v_b", 0), ("v_b", 1)],
            vec![],
            vec![],
        ]
    );
    assert!(weighted.covers(0) && !weighted.covers(4));
}
