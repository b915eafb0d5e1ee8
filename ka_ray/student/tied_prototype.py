"""Prototype: groups of tied channels by union-find (to be replaced by channel_groups)."""
from dataclasses import dataclass, field
import operator, torch
from torch import nn, Tensor, fx
from ka_ray.errors import InputError
from ka_ray.student.solvable_sums import ADDITIONS, get_module as _module, changes_nothing as _changes_nothing, find_norm_path, is_solvable, value_users
from ka_ray.student.lockstep import compute_node

POOL=(nn.AvgPool2d,nn.AdaptiveAvgPool2d)
@dataclass
class Group:
    width:int
    linear:bool=True
    fixed:bool=False

def find_groups(network, graph, image):
    vals={}; parent={}; linear={}; rep={}; fixed=set()
    def find(a):
        while parent[a] is not a: a=parent[a]
        return a
    def union(a,b,lin=True):
        a,b=find(a),find(b); l=linear[a] and linear[b] and lin
        parent[b]=a; linear[a]=l
    widths={}
    norms_after={}
    for node in graph.nodes:
        if node.op=='output':
            fixed.add(node.args[0]); break
        vals[node]=image if node.op=='placeholder' else compute_node(network,node,vals)
        v=vals[node]
        if not isinstance(v,Tensor) or v.dim()<2 or node.op=='get_attr': continue
        parent[node]=node; linear[node]=True; rep[node]=1
        if node.op=='placeholder': fixed.add(node); continue
        m=_module(network,node); srcs=[s for s in node.all_input_nodes if s in parent]
        if is_solvable(m):
            g=getattr(m,'groups',1)
            if g>1:
                if not g==m.in_channels==m.out_channels: raise InputError(f'grouped conv {node.target}')
                union(node,srcs[0],False)
            continue
        flat=vals[srcs[0]].shape[1] and v.shape[1]//vals[srcs[0]].shape[1] if len(srcs)==1 else 1
        norm=find_norm_path(network,node)
        lin=isinstance(m,POOL) or (norm and is_solvable(_module(network,node.all_input_nodes[0]))) or (m is not None and _changes_nothing(network,node)) or node.target in ADDITIONS or node.target in ('mean','flatten',torch.flatten,torch.mean) or isinstance(m,nn.Flatten)
        for s in srcs: union(s,node,lin); 
        rep[node]=rep[srcs[0]]*flat
    groups=[];ids={};of={}
    for n in parent:
        r=find(n)
        if r not in ids: ids[r]=len(groups); groups.append(Group(0,linear[r]))
        g=groups[ids[r]]; of[n]=(ids[r],rep[n])
        g.width=vals[n].shape[1]//rep[n]; g.fixed|= n in fixed
    return groups,of,{n:tuple(v.shape) for n,v in vals.items() if isinstance(v,Tensor)}
