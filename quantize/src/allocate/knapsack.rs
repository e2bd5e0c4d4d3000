//! The multiple-choice knapsack: one choice for each item, least cost, no more bytes than there are.
//!
//! Dynamic programming over what the items so far take (Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004, chapter 11).
//! The bytes are counted exactly; of the combinations whose bytes are within a few ten-thousandths of the budget only one goes
//! on: the cheapest, when a byte has the price that Lagrange's relaxation puts on it. So the result may miss the optimum by
//! little, never the budget.

/// What one choice takes and costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Bytes it takes.
    pub bytes: u64,
    /// The harm it does; finite.
    pub cost: f64,
}

/// There are at most twice so many classes of combinations that take nearly the same bytes.
const CLASSES: u64 = 4096;

/// The cheapest combination of a class.
#[derive(Clone, Copy)]
struct Combination {
    /// Bytes above those of the smallest choices.
    bytes: u64,
    cost: f64,
}

/// How a combination came about.
#[derive(Clone, Copy, Default)]
struct Step {
    /// The class of the combination without the item.
    from: u16,
    /// The item's choice.
    choice: u16,
}

/// The index of the choice of each item, or `None` if even the smallest of all take more than `budget`. Every item must have a
/// choice, and at most 65,536.
pub fn solve(items: &[Vec<Choice>], budget: u64) -> Option<Vec<usize>> {
    let smallest = |item: &Vec<Choice>| item.iter().map(|choice| choice.bytes).min();
    let least: Vec<u64> = items.iter().map(smallest).collect::<Option<_>>()?;
    let room = budget.checked_sub(least.iter().try_fold(0u64, |sum, &bytes| sum.checked_add(bytes))?)?;
    let most = |item: &Vec<Choice>| item.iter().map(|choice| choice.bytes).max().unwrap_or(0);
    let spread: u64 = items.iter().zip(&least).map(|(item, least)| most(item) - least).sum();
    let room = room.min(spread);
    // The smallest power of two that leaves no more than 2 · CLASSES.
    let shift = (room / CLASSES).checked_ilog2().unwrap_or(0);
    let classes = (room >> shift) as usize + 1;

    let price = price(items, budget);
    let value = |combination: Combination| combination.cost + price * combination.bytes as f64;
    let mut now: Vec<Option<Combination>> = vec![None; classes];
    now[0] = Some(Combination { bytes: 0, cost: 0.0 });
    let mut steps = vec![Step::default(); items.len() * classes];
    for ((item, least), steps) in items.iter().zip(&least).zip(steps.chunks_exact_mut(classes)) {
        let mut next: Vec<Option<Combination>> = vec![None; classes];
        for (from, before) in now.iter().enumerate() {
            let Some(before) = before else { continue };
            for (index, choice) in item.iter().enumerate() {
                let bytes = before.bytes + (choice.bytes - least);
                if bytes > room {
                    continue;
                }
                let new = Combination { bytes, cost: before.cost + choice.cost };
                let class = (bytes >> shift) as usize;
                if next[class].is_none_or(|old| value(new) < value(old)) {
                    next[class] = Some(new);
                    steps[class] = Step { from: from as u16, choice: index as u16 };
                }
            }
        }
        now = next;
    }

    let reached = now.iter().enumerate().filter_map(|(class, end)| Some((class, (*end)?)));
    let (mut class, _) = reached.min_by(|a, b| a.1.cost.total_cmp(&b.1.cost))?;
    let mut chosen = vec![0; items.len()];
    for (index, steps) in steps.chunks_exact(classes).enumerate().rev() {
        let step = steps[class];
        chosen[index] = step.choice.into();
        class = step.from.into();
    }
    Some(chosen)
}

/// The price of a byte at which the best choices, each item on its own, take about `budget` bytes; 0 if they never take more.
fn price(items: &[Vec<Choice>], budget: u64) -> f64 {
    let taken = |price: f64| -> f64 {
        let best = |item: &Vec<Choice>| {
            let value = |choice: &Choice| choice.cost + price * choice.bytes as f64;
            item.iter().min_by(|a, b| value(a).total_cmp(&value(b))).map_or(0.0, |choice| choice.bytes as f64)
        };
        items.iter().map(best).sum()
    };
    let budget = budget as f64;
    if taken(0.0) <= budget {
        return 0.0;
    }
    // Halving the range of its logarithm.
    let (mut low, mut high) = (-1000.0f64, 1000.0f64);
    for _ in 0..64 {
        let middle = (low + high) / 2.0;
        *(if taken(middle.exp2()) > budget { &mut low } else { &mut high }) = middle;
    }
    high.exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(bytes: u64, cost: f64) -> Choice {
        Choice { bytes, cost }
    }

    fn totals(items: &[Vec<Choice>], chosen: &[usize]) -> (u64, f64) {
        let all = items.iter().zip(chosen).map(|(item, &at)| item[at]);
        all.fold((0, 0.0), |(bytes, cost), choice| (bytes + choice.bytes, cost + choice.cost))
    }

    /// Items of `n` choices whose costs fall with the bytes, noisily.
    fn items(count: usize, n: usize) -> Vec<Vec<Choice>> {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 40
        };
        let item = |weights: u64, importance: f64, mut next: Box<dyn FnMut() -> u64 + '_>| {
            (0..n)
                .map(|bits| {
                    let noise = 0.8 + (next() % 100) as f64 / 250.0;
                    choice(weights * (2 + bits as u64), importance * 4f64.powi(-(bits as i32)) * noise)
                })
                .collect()
        };
        (0..count)
            .map(|_| {
                let (weights, importance) = (1 + next() % 50, 1.0 + (next() % 1000) as f64);
                item(weights, importance, Box::new(&mut next))
            })
            .collect()
    }

    fn exhaustive(items: &[Vec<Choice>], budget: u64) -> Option<f64> {
        fn least(items: &[Vec<Choice>], room: u64) -> Option<f64> {
            let Some((first, rest)) = items.split_first() else { return Some(0.0) };
            first
                .iter()
                .filter(|choice| choice.bytes <= room)
                .filter_map(|choice| Some(choice.cost + least(rest, room - choice.bytes)?))
                .min_by(f64::total_cmp)
        }
        least(items, budget)
    }

    #[test]
    fn finds_the_best_of_all_combinations() {
        let items = items(6, 4);
        let (smallest, largest): (u64, u64) =
            (items.iter().map(|item| item[0].bytes).sum(), items.iter().map(|item| item[3].bytes).sum());
        assert_eq!(solve(&items, smallest - 1), None);
        for budget in (smallest..=largest).step_by(3) {
            let chosen = solve(&items, budget).expect("there is room for the smallest");
            let (bytes, cost) = totals(&items, &chosen);
            assert!(bytes <= budget);
            let best = exhaustive(&items, budget).expect("feasible");
            assert!(cost <= best + 1e-9, "budget {budget}: {cost} against {best}");
        }
        assert_eq!(solve(&items, u64::MAX).expect("room"), vec![3; 6]);
    }

    /// No combination within `budget` costs less than this (Lagrange's relaxation).
    fn bound(items: &[Vec<Choice>], budget: u64) -> f64 {
        let at = |price: f64| {
            let least = |item: &Vec<Choice>| {
                item.iter().map(|choice| choice.cost + price * choice.bytes as f64).fold(f64::MAX, f64::min)
            };
            items.iter().map(least).sum::<f64>() - price * budget as f64
        };
        (0..400).map(|step| at(1e-6 * 1.05f64.powi(step))).fold(f64::MIN, f64::max)
    }

    #[test]
    fn many_items_use_up_the_budget_and_come_close_to_the_least_cost() {
        let items: Vec<Vec<Choice>> = items(1000, 6)
            .into_iter()
            .map(|item| item.into_iter().map(|c| choice(c.bytes * 12_345_678, c.cost)).collect())
            .collect();
        let largest: u64 = items.iter().map(|item| item[5].bytes).sum();
        for share in [40, 60, 80] {
            let budget = largest / 100 * share;
            let chosen = solve(&items, budget).expect("there is room");
            let (bytes, cost) = totals(&items, &chosen);
            assert!(bytes <= budget && bytes / 999 >= budget / 1000, "{bytes} of {budget}");
            let small: Vec<Vec<Choice>> = items
                .iter()
                .map(|item| item.iter().map(|c| choice(c.bytes / 12_345_678, c.cost)).collect())
                .collect();
            let bound = bound(&small, budget / 12_345_678);
            assert!(cost <= bound * 1.01, "{cost}, and no less than {bound} is possible");
        }
    }

    #[test]
    fn a_choice_that_is_larger_and_worse_is_never_taken() {
        let items = [vec![choice(4, 1.0), choice(5, 2.0), choice(8, 1.0)]];
        assert_eq!(solve(&items, 100), Some(vec![0]));
    }
}
