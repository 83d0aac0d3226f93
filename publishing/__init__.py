"""From a trained folder to the Hub: conversion, merging, card, gate, proof and the client."""
