"""Simulation: a step as tasks on devices and links, and plans sampled by their simulated time.

`tasks` and `simulator` know of no model; `delta` is the simulator made fast for changes of one
operation; `strategy_model` says what can be chosen, which `mcmc` samples; `plan_tasks` and `refine`
put plans in, `network_tasks` those of models without a graph. A new kind of model to simulate
(FlexFlow's, say) is a `strategy_model.StrategyModel`.
"""
